//! What differs between two measured guests, in words.

use std::collections::BTreeSet;

use super::manifest::{Manifest, MeasuredRange, RangeKind};

/// SEV_FEATURES (AMD64 APM volume 2, table B-4 and section 15.36), by bit.
const SEV_FEATURES: [(u32, &str); 16] = [
    (0, "SNP active"),
    (1, "virtual top of memory"),
    (2, "reflect #VC"),
    (3, "restricted injection"),
    (4, "alternate injection"),
    (5, "debug swap"),
    (6, "prevent host IBS"),
    (7, "BTB isolation"),
    (8, "VMPL SSS"),
    (9, "secure TSC"),
    (10, "VMGEXIT parameter"),
    (12, "IBS virtualization"),
    (14, "VMSA register protection"),
    (15, "SMT protection"),
    (16, "secure AVIC"),
    (18, "page modification logging"),
];

/// Every difference that moves the measurement, in the order in which it is measured. Empty if the
/// two measure to the same.
#[must_use]
pub fn differences(a: &Manifest, b: &Manifest) -> Vec<String> {
    if a.platform != b.platform {
        let (a, b) = (a.platform.name(), b.platform.name());
        return vec![format!("the first is for {a}, the second for {b}")];
    }
    if a.measurement == b.measurement {
        return Vec::new();
    }
    let mut found = pages(a, b);
    found.extend(vcpus(a, b));
    if found.is_empty() {
        found.push("the ranges are the same but their pages are measured in another order".into());
    }
    found
}

fn vmsas(manifest: &Manifest) -> Vec<&MeasuredRange> {
    manifest.ranges.iter().filter(|range| range.kind == RangeKind::Vmsa).collect()
}

fn pages(a: &Manifest, b: &Manifest) -> Vec<String> {
    let list = |manifest: &Manifest| -> Vec<MeasuredRange> {
        manifest.ranges.iter().filter(|range| range.kind != RangeKind::Vmsa).cloned().collect()
    };
    let (a, mut unmatched) = (list(a), list(b));
    let b = unmatched.clone();
    let mut found = Vec::new();
    let mut order = Vec::new();
    for range in &a {
        // Surely the same thing; else the only one of its name; else what took its place.
        let find = |same: &dyn Fn(&MeasuredRange) -> bool| unmatched.iter().position(same);
        let place = |other: &MeasuredRange| other.address == range.address;
        let name_of = |other: &MeasuredRange| other.tag == range.tag;
        let count = |list: &[MeasuredRange]| list.iter().filter(|other| name_of(other)).count();
        let only = count(&a) == 1 && count(&b) == 1;
        let found_at = find(&|other| place(other) && name_of(other))
            .or_else(|| find(&|other| only && name_of(other)))
            .or_else(|| find(&|other| place(other) && other.length == range.length));
        let Some(at) = found_at else {
            found.push(format!("only the first has {}", name(range)));
            continue;
        };
        let other = unmatched.remove(at);
        found.extend(page_differences(range, &other));
        order.push(other.order);
    }
    found.extend(unmatched.iter().map(|range| format!("only the second has {}", name(range))));
    if !order.is_sorted() {
        found.push("ranges that both have enter in another order".to_owned());
    }
    found
}

fn name(range: &MeasuredRange) -> String {
    format!(
        "{} ({}) at {}, {:#x} bytes",
        range.tag,
        range.kind.as_str(),
        range.address,
        range.length
    )
}

fn page_differences(a: &MeasuredRange, b: &MeasuredRange) -> Vec<String> {
    let mut found = Vec::new();
    let tag = &a.tag;
    if a.address != b.address {
        found.push(format!("{tag}: at {} in the first, at {} in the second", a.address, b.address));
    }
    if a.length != b.length {
        found.push(format!(
            "{tag}: {:#x} bytes in the first, {:#x} in the second",
            a.length, b.length
        ));
    }
    if (a.kind, tag) != (b.kind, &b.tag) {
        let side = |range: &MeasuredRange| format!("{} ({})", range.tag, range.kind.as_str());
        let (first, second) = (side(a), side(b));
        found.push(format!("at {}: {first} in the first, {second} in the second", a.address));
    } else if a.sha384 != b.sha384 {
        found.extend(contents_differences(a, b));
    }
    found
}

/// Differences of the config pages, which are part of the images of Casemate's firmware.
fn contents_differences(a: &MeasuredRange, b: &MeasuredRange) -> Vec<String> {
    let other = format!("{} at {}: other contents", a.tag, a.address);
    let (Some(first), Some(second)) = (&a.config_page, &b.config_page) else { return vec![other] };
    let pairs =
        first.values.iter().filter_map(|(name, a)| Some((name, a, second.values.get(name)?)));
    let mut found: Vec<_> = pairs
        .filter(|(_, a, b)| a != b)
        .map(|(name, a, b)| {
            format!("config page of the firmware: {name} is {a} in the first and {b} in the second")
        })
        .collect();
    if first.rest_sha384 != second.rest_sha384 || found.is_empty() {
        found.push(other);
    }
    found
}

fn vcpus(a: &Manifest, b: &Manifest) -> Vec<String> {
    let (a, b) = (vmsas(a), vmsas(b));
    let mut found = Vec::new();
    if a.len() != b.len() {
        found.push(format!("{} vCPUs in the first, {} in the second", a.len(), b.len()));
    }
    let common = a.len().min(b.len());
    let mut each: Vec<(usize, BTreeSet<String>)> = Vec::new();
    for (index, (a, b)) in a.iter().zip(&b).enumerate() {
        let differences = register_differences(a, b);
        if !differences.is_empty() {
            each.push((index, differences));
        }
    }
    // A difference that all vCPUs share is reported once.
    if each.len() == common && common > 1 {
        let shared: BTreeSet<_> = each[0].1.clone();
        let shared = each.iter().fold(shared, |shared, (_, other)| &shared & other);
        found.extend(shared.iter().map(|what| format!("VMSA of every vCPU: {what}")));
        for (_, differences) in &mut each {
            differences.retain(|what| !shared.contains(what));
        }
    }
    for (index, differences) in each {
        found.extend(differences.into_iter().map(|what| format!("VMSA of vCPU {index}: {what}")));
    }
    found
}

fn register_differences(a: &MeasuredRange, b: &MeasuredRange) -> BTreeSet<String> {
    let names: BTreeSet<_> = a.registers.keys().chain(b.registers.keys()).collect();
    let value = |range: &MeasuredRange, name| range.registers.get(name).cloned();
    names
        .into_iter()
        .map(|name| (name, value(a, name), value(b, name)))
        .filter(|(_, a, b)| a != b)
        .flat_map(|(name, a, b)| {
            let zero = || "0x0".to_owned();
            register_words(name, &a.unwrap_or_else(zero), &b.unwrap_or_else(zero))
        })
        .collect()
}

/// One difference, except for SEV_FEATURES, where each bit is one.
fn register_words(name: &str, a: &str, b: &str) -> Vec<String> {
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    if let ("SEV_FEATURES", Some(first), Some(second)) = (name, number(a), number(b)) {
        let bits = (0..64).filter(|bit| (first ^ second) >> bit & 1 == 1);
        return bits
            .map(|bit| {
                let known = SEV_FEATURES.iter().find(|(known, _)| *known == bit);
                let meaning = known.map_or("unknown", |(_, meaning)| meaning);
                let owner = if first >> bit & 1 == 1 { "first" } else { "second" };
                format!("SEV_FEATURES bit {bit}, {meaning}, is set only in the {owner}")
            })
            .collect();
    }
    let why = match name {
        "RDX" => ", the CPU model's signature",
        "MXCSR" | "X87_FCW" => ", zero on hosts before Linux 6.10",
        "RIP" | "CS.base" => ", where the vCPU starts",
        _ => "",
    };
    vec![format!("{name} is {a} in the first and {b} in the second{why}")]
}
