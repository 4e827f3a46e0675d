//! The examples of every command's help make sense to the parser.

use clap::{Command as Clap, CommandFactory, Parser};

use super::Cli;

/// The command lines in a help text.
fn examples(help: &str) -> Vec<String> {
    help.lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter_map(|line| line.find("flotilla ").map(|at| &line[at..]))
        .map(|line| line.split(['>', '<', '|']).next().unwrap_or_default().trim().to_owned())
        .collect()
}

fn all(command: &Clap, found: &mut Vec<(String, Vec<String>)>) {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    found.push((command.get_name().to_owned(), examples(&help)));
    for child in command.get_subcommands() {
        all(child, found);
    }
}

#[test]
fn every_command_has_examples_that_parse() {
    let mut found = Vec::new();
    all(&Cli::command(), &mut found);
    assert!(found.len() > 30, "{}", found.len());
    for (command, examples) in found {
        assert!(!examples.is_empty(), "{command} has no example");
        for example in examples {
            let parsed = Cli::try_parse_from(example.split_whitespace());
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn the_commands_fit_together() {
    Cli::command().debug_assert();
}

#[test]
fn what_a_container_is_told_stays_as_it_is() {
    let cli = Cli::try_parse_from(["flotilla", "exec", "web-1", "-it", "--", "sh", "-c", "echo -n --socket"]).unwrap();
    let super::Command::Exec(args) = cli.command else { panic!("not exec") };
    assert!(format!("{args:?}").contains(r#"["sh", "-c", "echo -n --socket"]"#), "{args:?}");
}

#[test]
fn nonsense_is_a_usage_error() {
    for line in [
        "flotilla scale web many",
        "flotilla delete",
        "flotilla delete pod a -f b.yaml",
        "flotilla submit",
        "flotilla submit a.yaml --detach --wait-complete",
        "flotilla run web",
        "flotilla run web --image a --parallelism 3",
        "flotilla logs web -f --previous",
        "flotilla get pods -o toml",
        "flotilla token create --ttl soon",
        "flotilla token create --ttl 0s",
        "flotilla credentials alice --ttl 0s",
    ] {
        let error = Cli::try_parse_from(line.split_whitespace()).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}
