// Included by each binary: the target that FUZZ_TARGET names.

fn chosen(targets: &'static [(&'static str, fn(&[u8]))]) -> fn(&[u8]) {
    static CHOSEN: std::sync::OnceLock<fn(&[u8])> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = targets.iter().map(|(name, _)| *name).collect();
        let found = targets.iter().find(|(target, _)| *target == name);
        found.unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is none of {names:?}")).1
    })
}
