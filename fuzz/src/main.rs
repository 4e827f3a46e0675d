//! Feeds the decoder that FUZZ_TARGET names, as CRATE/TARGET, with what libFuzzer makes up.
#![no_main]

use std::env;
use std::sync::OnceLock;

type Target = fn(&[u8]);

libfuzzer_sys::fuzz_target!(|input: &[u8]| chosen()(input));

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let crates = [
            ("api", flotilla_api::fuzz::TARGETS),
            ("net", flotilla_net::fuzz::TARGETS),
            ("runtime", flotilla_runtime::fuzz::TARGETS),
            ("raft", flotilla_raft::fuzz::TARGETS),
            ("daemon", flotilla::fuzz::TARGETS),
        ];
        let asked = env::var("FUZZ_TARGET").unwrap_or_default();
        let all = crates.iter().flat_map(|(name, targets)| targets.iter().map(move |target| (name, target)));
        let found = all.into_iter().find(|(name, (target, _))| asked == format!("{name}/{target}"));
        found.unwrap_or_else(|| panic!("FUZZ_TARGET={asked:?} is no CRATE/TARGET of a crate's src/fuzz.rs")).1.1
    })
}
