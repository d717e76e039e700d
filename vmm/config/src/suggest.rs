//! Suggestions for names of keys and flags that do not exist.

/// Names that other programs use, and ours.
const OF_PEERS: &[(&str, &str)] = &[
    ("append", "cmdline"),
    ("args", "cmdline"),
    ("bios", "firmware"),
    ("boot-args", "cmdline"),
    ("cpus", "vcpus"),
    ("drive", "disk"),
    ("hda", "disk"),
    ("initramfs", "initrd"),
    ("m", "memory"),
    ("mem", "memory"),
    ("netdev", "net"),
    ("nic", "net"),
    ("ovmf", "firmware"),
    ("pflash", "firmware"),
    ("ram", "memory"),
    ("ramdisk", "initrd"),
    ("smp", "vcpus"),
    ("vmm-type", "vmm"),
];

/// Similarity from which a name is a likely typing error; 1 is equality.
const LIKELY: f64 = 0.75;
/// Most letters that a typing error changes.
const MOST_EDITS: usize = 3;

/// Returns the known name that `name`, with or without its dashes, most likely stands for: another
/// program's name for it, or a name that differs by few letters.
#[must_use]
pub fn suggestion<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.trim_start_matches('-');
    let of_peer = OF_PEERS.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
    if let Some(ours) = of_peer.and_then(|ours| known.iter().find(|known| **known == ours)) {
        return Some(ours);
    }
    // A flag has dashes where its key has underscores.
    let name = name.replace('-', "_");
    let likeness = |known: &str| strsim::jaro_winkler(&name, &known.replace('-', "_"));
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    let edits = strsim::levenshtein(&name, &best.replace('-', "_"));
    (likeness(best) >= LIKELY && edits <= MOST_EDITS).then_some(*best)
}

/// The message for an unknown key.
pub(crate) fn unknown_key(key: &str, known: &[&str]) -> String {
    if let Some(meant) = suggestion(key, known) {
        return format!("unknown key `{key}`; did you mean `{meant}`?");
    }
    let list: Vec<_> = known.iter().map(|known| format!("`{known}`")).collect();
    format!("unknown key `{key}`; keys are {}", list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 5] = ["kernel", "memory", "vcpus", "read_only", "cmdline"];

    #[test]
    fn typing_errors_and_names_of_peers_get_a_suggestion() {
        for (name, meant) in [
            ("vcpu", "vcpus"),
            ("memroy", "memory"),
            ("readonly", "read_only"),
            ("read-only", "read_only"),
            ("-m", "memory"),
            ("--smp", "vcpus"),
            ("mem", "memory"),
            ("append", "cmdline"),
        ] {
            assert_eq!(suggestion(name, &KNOWN), Some(meant), "{name}");
        }
    }

    #[test]
    fn other_names_get_none() {
        for name in ["nothing", "speed", "x", "", "smp2000"] {
            assert_eq!(suggestion(name, &KNOWN), None, "{name}");
        }
        assert_eq!(suggestion("smp", &["path"]), None);
    }
}
