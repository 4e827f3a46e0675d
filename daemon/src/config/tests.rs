//! What the layers make of each other, and what is refused.

use super::*;

fn load(file: &str, environment: &[(&str, &str)], flags: Layer) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flotilla.toml");
    fs::write(&path, file).unwrap();
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::load(Some(&path), environment, flags).map_err(|e| e.to_string())
}

#[test]
fn each_layer_is_stronger_than_the_one_before() {
    let file = "name = \"file\"\nbridge = \"file0\"\nlog = \"warn\"\n";
    let flags = Layer { name: Some("flag".into()), ..Layer::default() };
    let config = load(file, &[("FLOTILLA_NAME", "env"), ("FLOTILLA_BRIDGE", "env0"), ("HOME", "/")], flags).unwrap();
    assert_eq!((config.name.as_deref(), &*config.bridge, &*config.log), (Some("flag"), "env0", "warn"));
}

#[test]
fn an_unknown_key_is_named() {
    let error = load("nam = \"x\"\n", &[], Layer::default()).unwrap_err();
    assert!(error.contains("flotilla.toml") && error.contains("nam"), "{error}");
    let error = load("", &[("FLOTILLA_NAM", "x")], Layer::default()).unwrap_err();
    assert!(error.contains("FLOTILLA_NAM") && error.contains("unknown field `nam`"), "{error}");
}

#[test]
fn variables_hold_numbers_lists_and_plain_text() {
    let variables = [
        ("FLOTILLA_NAME", "n1"),
        ("FLOTILLA_DEAD_MS", "5000"),
        ("FLOTILLA_ADVERTISE", "[\"10.0.0.1:6443\"]"),
        ("FLOTILLA_SERVER", "elsewhere"),
    ];
    let config = load("", &variables, Layer::default()).unwrap();
    assert_eq!((config.dead_ms, config.advertise.len()), (5_000, 1));
}

#[test]
fn an_error_says_where_and_what_and_never_a_secret() {
    for (file, place) in [
        ("name = \"a\"\n[registries.r]\npassword = \"hunter2\n", "flotilla.toml, line 3, column "),
        ("join = hunter2\n", "flotilla.toml, line 1, column 8"),
        ("join = \"hunter2\" x\n", "flotilla.toml, line 1, column "),
        ("registries = \"hunter2\"\n", "invalid type: string, expected a map"),
        ("[registries.r]\npassword = \"hunter2\"\nfoo = 1\n", "unknown field `foo`"),
    ] {
        let error = load(file, &[], Layer::default()).unwrap_err();
        assert!(error.contains(place) && !error.contains("hunter2") && !error.contains('\n'), "{error}");
    }
    for (value, cause) in [
        ("{ r = { password = \"hunter2\", foo = 1 } }", "unknown field `foo`"),
        ("{ r = { password = \"hunter2\" }", "invalid type: string, expected a map"),
        ("{ r = \"hunter2\" }", "invalid type: string, expected struct Registry"),
    ] {
        let error = load("", &[("FLOTILLA_REGISTRIES", value)], Layer::default()).unwrap_err();
        assert!(error.contains(cause) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_variable_that_is_empty_is_not_set_and_a_list_needs_no_brackets() {
    let variables = [
        ("FLOTILLA_JOIN", ""),
        ("FLOTILLA_JOIN_FILE", ""),
        ("FLOTILLA_NAME", ""),
        ("FLOTILLA_ADVERTISE", "10.0.0.1:6443,[fd00::1]:6443"),
    ];
    let config = load("name = \"a\"\n", &variables, Layer::default()).unwrap();
    assert_eq!((config.name.as_deref(), config.join, config.join_file), (Some("a"), None, None));
    assert_eq!(config.advertise.len(), 2);
}

#[test]
fn a_token_comes_from_one_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let file = path.display().to_string();
    let config = load("", &[("FLOTILLA_JOIN_FILE", &file)], Layer::default()).unwrap();
    let error = format!("{:#}", config.token().unwrap_err());
    assert!(error.starts_with(&format!("cannot read a token from {file}: ")), "{error}");
    let addresses = vec!["10.0.0.1:6443".parse().unwrap()];
    let token = Token::generate(flotilla_net::ClusterId::generate(), [0; 32], None, addresses).unwrap();
    fs::write(&path, format!("{token}\n")).unwrap();
    assert_eq!(config.token().unwrap().unwrap().id(), token.id());
    fs::write(&path, "\n").unwrap();
    assert!(format!("{:#}", config.token().unwrap_err()).contains("begins with flt1."));
    let error = load("join_file = \"/x\"\n", &[("FLOTILLA_JOIN", "flt1.x")], Layer::default()).unwrap_err();
    assert!(error.contains("join, join_file: both are set"), "{error}");
}

#[test]
fn a_certificate_lives_a_minute_at_least() {
    let config = load("name = \"a\"\nnode_certificate_seconds = 60\n", &[], Layer::default()).unwrap();
    assert_eq!(config.certificate_lifetime(), Duration::from_secs(60));
    let error = load("name = \"a\"\nnode_certificate_seconds = 59\n", &[], Layer::default()).unwrap_err();
    assert!(error.contains("node_certificate_seconds") && error.contains("from 60"), "{error}");
}

#[test]
fn history_is_kept_for_ten_seconds_at_least() {
    assert_eq!(load("name = \"a\"\n", &[], Layer::default()).unwrap().history(), Duration::from_secs(300));
    let error = load("name = \"a\"\nhistory_seconds = 9\n", &[], Layer::default()).unwrap_err();
    assert!(error.contains("history_seconds") && error.contains("at least 10"), "{error}");
}

#[test]
fn timings_that_contradict_each_other_are_refused() {
    let error = load("name = \"a\"\nsuspect_ms = 300\n", &[], Layer::default()).unwrap_err();
    assert!(error.contains("beat_ms, suspect_ms, dead_ms"), "{error}");
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    for (line, key) in [
        ("beat_ms = 9223372036854775807", "beat_ms"),
        ("replace_dead_seconds = 0", "replace_dead_seconds"),
        ("data_dir = \"\"", "data_dir"),
        ("cgroup_parent = \"flotilla\"", "cgroup_parent"),
        ("cgroup_parent = \"/flotilla/../x\"", "cgroup_parent"),
        ("bridge = \"lo\"", "bridge"),
        ("log = \"loud\"", "log"),
        ("labels = { \"a b\" = \"c\" }", "labels"),
        ("labels = { a = \"b c\" }", "labels"),
        ("log = \"flotilla=debug,loud\"", "log"),
        ("advertise = [\"0.0.0.0:6443\"]", "advertise"),
        ("advertise = [\"224.0.0.1:6443\"]", "advertise"),
        ("advertise = [\"255.255.255.255:6443\"]", "advertise"),
        ("advertise = [\"10.0.0.1:0\"]", "advertise"),
    ] {
        let error = load(&format!("name = \"a\"\n{line}\n"), &[], Layer::default()).unwrap_err();
        assert!(error.starts_with(key) && error.contains("must"), "{line}: {error}");
    }
}
