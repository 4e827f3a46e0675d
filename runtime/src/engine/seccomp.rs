//! The default seccomp profile: an allow-list as containerd and Docker have it, kept as data in `seccomp.json`.
//!
//! Invariant: what is not listed fails with EPERM, and `clone3`, whose flags a filter cannot see, with ENOSYS, upon
//! which C libraries fall back to `clone`.

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const AF_VSOCK: u64 = 40;
/// Every `CLONE_NEW*` flag: new namespaces need CAP_SYS_ADMIN.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// Execution domains that `personality` may set: Linux, 32-bit Linux, the older `uname`, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

#[derive(Deserialize)]
struct Data {
    allow: Vec<String>,
    with_capability: BTreeMap<String, Vec<String>>,
}

fn data() -> &'static Data {
    static DATA: OnceLock<Data> = OnceLock::new();
    // The file is part of the program, and a test below parses it.
    DATA.get_or_init(|| serde_json::from_str(include_str!("seccomp.json")).expect("seccomp.json is valid"))
}

/// The profile for a container with these capabilities, as an OCI `linux.seccomp` object.
pub fn default_profile(capabilities: &[&str]) -> Value {
    let mut names: Vec<&str> = data().allow.iter().map(String::as_str).collect();
    for (capability, extra) in &data().with_capability {
        if capabilities.contains(&capability.as_str()) {
            names.extend(extra.iter().map(String::as_str));
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![rule(&names, None), rule(&["socket"], Some(arg(0, AF_VSOCK, None, "SCMP_CMP_NE")))];
    rules.extend(PERSONALITIES.map(|domain| rule(&["personality"], Some(arg(0, domain, None, "SCMP_CMP_EQ")))));
    if !capabilities.contains(&"CAP_SYS_ADMIN") {
        rules.push(rule(&["clone"], Some(arg(0, CLONE_NAMESPACES, Some(0), "SCMP_CMP_MASKED_EQ"))));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    let mut profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "syscalls": rules,
    });
    if let Some(architectures) = architectures() {
        profile["architectures"] = json!(architectures);
    }
    profile
}

fn rule(names: &[&str], argument: Option<Value>) -> Value {
    let mut rule = json!({"names": names, "action": "SCMP_ACT_ALLOW"});
    if let Some(argument) = argument {
        rule["args"] = json!([argument]);
    }
    rule
}

fn arg(index: u32, value: u64, second: Option<u64>, op: &str) -> Value {
    let mut arg = json!({"index": index, "value": value, "op": op});
    if let Some(second) = second {
        arg["valueTwo"] = json!(second);
    }
    arg
}

fn architectures() -> Option<&'static [&'static str]> {
    match std::env::consts::ARCH {
        "x86_64" => Some(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => Some(&["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(profile: &Value, name: &str) -> bool {
        profile["syscalls"].as_array().unwrap().iter().any(|rule| {
            rule["action"] == "SCMP_ACT_ALLOW"
                && rule.get("args").is_none()
                && rule["names"].as_array().unwrap().iter().any(|n| n == name)
        })
    }

    #[test]
    fn the_default_denies_what_reaches_the_host() {
        let profile = default_profile(&["CAP_CHOWN"]);
        for name in
            ["mount", "bpf", "kexec_load", "init_module", "setns", "unshare", "keyctl", "io_uring_setup", "reboot"]
        {
            assert!(!allows(&profile, name), "{name}");
        }
        for name in ["read", "execve", "openat", "futex", "epoll_pwait2"] {
            assert!(allows(&profile, name), "{name}");
        }
    }

    #[test]
    fn capabilities_open_their_calls() {
        let profile = default_profile(&["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]);
        assert!(allows(&profile, "mount") && allows(&profile, "clone3") && allows(&profile, "chroot"));
    }

    #[test]
    fn it_is_a_profile_after_the_specification() {
        let parsed: oci_spec::runtime::LinuxSeccomp = serde_json::from_value(default_profile(&[])).unwrap();
        assert_eq!(parsed.default_errno_ret(), Some(EPERM));
    }
}
