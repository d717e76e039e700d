//! Warnings about the kernel command line of a confidential guest.
//!
//! The serial port and the console of a guest belong to its host. A root shell there hands the host the
//! guest, with the right measurement: the shell is part of what was measured.

use std::fmt;

use casemate_config::GuestConfig;
use casemate_foreign::Foreign;
use casemate_protocol::{BROKER_KEY_PARAMETER, parameters, pinned_keys};

/// A hazard of a command line, and the way to remove it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Caution {
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

/// The measured command line of a configuration, if there is one: a kernel from a disk or from an IGVM
/// file has another.
pub(crate) fn measured_line(config: &GuestConfig) -> Option<&str> {
    (config.igvm.is_none() && config.kernel.is_some()).then_some(config.cmdline.as_str())
}

/// The hazards of a confidential guest's command line. `vsock`: the guest can reach a broker on its host.
pub(crate) fn cautions(command_line: &str, vsock: bool) -> Vec<Caution> {
    let opened = parameters(command_line).filter_map(|(name, value)| {
        let effect = effect(name, value)?;
        let parameter = value.map_or(name.to_owned(), |value| format!("{name}={value}"));
        let parameter = Foreign(&parameter);
        Some(Caution {
            problem: format!("\"{parameter}\" on the command line {effect}"),
            remedy: "remove it".into(),
        })
    });
    opened.chain(failed_boot(command_line)).chain(broker_key(command_line, vsock)).collect()
}

/// What a parameter opens to the host, if anything. Sources: Linux, `admin-guide/kernel-parameters`;
/// systemd, `kernel-command-line(7)`; dracut, `dracut.cmdline(7)`; Debian, `initramfs-tools(7)`.
fn effect(name: &str, value: Option<&str>) -> Option<&'static str> {
    const SHELL: &str = "starts a root shell on a console of the host";
    let shell = match name {
        "init" | "rdinit" => value.is_some_and(is_shell),
        "single" | "S" | "s" | "1" | "rescue" | "emergency" | "-b" => value.is_none(),
        "rd.break" | "break" => true,
        "rd.shell" | "rd.systemd.debug_shell" | "rd.systemd.debug-shell" => is_on(value),
        "systemd.debug_shell" | "systemd.debug-shell" => is_on(value),
        "systemd.unit" | "rd.systemd.unit" => {
            value.is_some_and(|unit| unit.starts_with("rescue.") || unit.starts_with("emergency."))
        }
        "systemd.setenv" => value.is_some_and(|set| set.starts_with("SYSTEMD_SULOGIN_FORCE=")),
        "SYSTEMD_SULOGIN_FORCE" => is_on(value),
        _ => false,
    };
    match name {
        _ if shell => Some(SHELL),
        "kgdboc" | "ekgdboc" | "kgdbwait" => {
            Some("gives the host a debugger of the guest's kernel")
        }
        "sysrq_always_enabled" => Some("lets the host send SysRq commands over the serial port"),
        _ => None,
    }
}

fn is_shell(path: &str) -> bool {
    let program = path.rsplit('/').next().unwrap_or_default();
    ["sh", "ash", "bash", "busybox", "dash", "ksh", "sulogin", "zsh"].contains(&program)
}

/// Whether a switch is on; without a value it is.
fn is_on(value: Option<&str>) -> bool {
    !matches!(value, Some("0" | "no" | "n" | "off" | "false" | "f"))
}

/// The shells that initial RAM disks open when they do not find the root file system.
fn failed_boot(command_line: &str) -> Option<Caution> {
    let last = |wanted: &str| {
        let values = parameters(command_line).filter(|(name, _)| *name == wanted);
        values.last().map(|(_, value)| value)
    };
    // initramfs-tools reboots instead if there is any number of seconds.
    let reboots = last("panic").flatten().is_some_and(|value| value.parse::<i32>().is_ok());
    // A shell that is asked for is a caution of its own.
    let missing = [("panic=-1", reboots), ("rd.shell=0", last("rd.shell").is_some())];
    let missing: Vec<_> =
        missing.iter().filter(|(_, there)| !there).map(|(parameter, _)| *parameter).collect();
    (!missing.is_empty()).then(|| Caution {
        problem:
            "an initial RAM disk that does not find its disk, which the host can take away, may \
                  open a root shell on a console of the host"
                .into(),
        remedy: format!("append \"{}\"", missing.join(" ")),
    })
}

/// Whether the guest knows its broker.
fn broker_key(command_line: &str, vsock: bool) -> Option<Caution> {
    let problem = match pinned_keys(command_line) {
        Err(error) => format!("{BROKER_KEY_PARAMETER} on the command line is {error}"),
        Ok(keys) if keys.is_empty() && vsock => {
            "the command line pins no broker key: casemate-agent \
                                                 takes no secret without one"
                .into()
        }
        Ok(_) => return None,
    };
    let remedy = format!(
        "append \"{BROKER_KEY_PARAMETER}=KEY\" with the key of casemate broker release-key"
    );
    Some(Caution { problem, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAFE: &str = "console=ttyS0 panic=-1 rd.shell=0";

    #[test]
    fn safe_lines_have_no_cautions() {
        for line in [
            SAFE,
            "console=hvc0 rd.shell=no panic=5 root=/dev/mapper/root",
            "panic=-1 rd.shell=0 init=/usr/lib/systemd/systemd systemd.unit=multi-user.target",
            "panic=-1 rd.shell=0 systemd.debug_shell=0 -- single rd.break",
            "panic=-1 rd.shell=0 a=\"single rd.break\" breakfast shell=1",
        ] {
            assert_eq!(cautions(line, false), [], "{line}");
        }
    }

    #[test]
    fn each_way_to_a_shell_or_debugger_is_a_caution() {
        for (parameter, effect) in [
            ("init=/bin/sh", "root shell"),
            ("init=/usr/bin/bash", "root shell"),
            ("rdinit=/bin/busybox", "root shell"),
            ("single", "root shell"),
            ("S", "root shell"),
            ("1", "root shell"),
            ("emergency", "root shell"),
            ("rescue", "root shell"),
            ("-b", "root shell"),
            ("rd.break", "root shell"),
            ("rd.break=pre-mount", "root shell"),
            ("break=premount", "root shell"),
            ("rd.shell", "root shell"),
            ("rd.shell=1", "root shell"),
            ("systemd.debug_shell", "root shell"),
            ("systemd.debug-shell=1", "root shell"),
            ("rd.systemd.debug_shell=tty1", "root shell"),
            ("systemd.unit=rescue.target", "root shell"),
            ("rd.systemd.unit=emergency.target", "root shell"),
            ("systemd.setenv=SYSTEMD_SULOGIN_FORCE=1", "root shell"),
            ("SYSTEMD_SULOGIN_FORCE=1", "root shell"),
            ("kgdboc=ttyS0,115200", "debugger"),
            ("kgdbwait", "debugger"),
            ("sysrq_always_enabled", "SysRq"),
        ] {
            let line = format!("{SAFE} {parameter}");
            let found = cautions(&line, false);
            let [caution] = found.as_slice() else { panic!("{parameter}: {found:?}") };
            assert!(caution.problem.contains(effect), "{parameter}: {caution}");
            assert!(caution.problem.contains(&format!("\"{parameter}\"")), "{caution}");
            assert_eq!(caution.remedy, "remove it");
        }
    }

    #[test]
    fn a_failed_boot_opens_no_shell() {
        for (line, missing) in [
            ("console=ttyS0", "\"panic=-1 rd.shell=0\""),
            ("console=hvc0 panic=-1", "\"rd.shell=0\""),
            ("console=hvc0 panic= rd.shell=0", "\"panic=-1\""),
            ("panic rd.shell=0", "\"panic=-1\""),
            ("", "\"panic=-1 rd.shell=0\""),
        ] {
            let found = cautions(line, false);
            let [caution] = found.as_slice() else { panic!("{line}: {found:?}") };
            assert_eq!(caution.remedy, format!("append {missing}"), "{line}");
        }
    }

    #[test]
    fn a_guest_that_can_reach_a_broker_pins_its_key() {
        let pinned = format!("{SAFE} casemate.broker_key=ed25519:{}", "A".repeat(43));
        assert_eq!(cautions(&pinned, true), []);
        assert_eq!(cautions(SAFE, false), []);
        for (line, vsock) in [
            (SAFE.to_owned(), true),
            (format!("{SAFE} casemate.broker_key=x"), false),
            (format!("{pinned} casemate.broker_key"), true),
        ] {
            let found = cautions(&line, vsock);
            let [caution] = found.as_slice() else { panic!("{line}: {found:?}") };
            assert!(caution.remedy.contains("broker release-key"), "{caution}");
        }
    }

    #[test]
    fn foreign_characters_are_escaped() {
        let found = cautions(&format!("{SAFE} rd.break=\u{1b}[2J"), false);
        assert!(!found[0].to_string().contains('\u{1b}'), "{found:?}");
    }
}
