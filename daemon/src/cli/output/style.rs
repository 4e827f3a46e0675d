//! Colours say how things stand: green is well, yellow on its way, red needs a person.

/// What a word means for the reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Strong,
    Good,
    Busy,
    Bad,
    /// One of a few colours, to tell sources of lines apart.
    Source(u8),
}

/// Colours that tell sources apart on dark and light grounds alike.
const SOURCE_CODES: [&str; 6] = ["36", "35", "34", "33", "32", "96"];

impl Tone {
    fn code(self) -> Option<&'static str> {
        Some(match self {
            Tone::Plain => return None,
            Tone::Strong => "1",
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "31",
            Tone::Source(index) => SOURCE_CODES[usize::from(index) % SOURCE_CODES.len()],
        })
    }
}

/// `text` in the colour of `tone`, or as it is.
pub fn paint(colour: bool, tone: Tone, text: &str) -> String {
    match tone.code().filter(|_| colour && !text.is_empty()) {
        Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
        None => text.to_owned(),
    }
}

/// The tone of a status word, as pods, nodes, jobs and tokens use them.
pub fn tone_of(status: &str) -> Tone {
    const GOOD: [&str; 9] =
        ["Ready", "Running", "Complete", "Completed", "Succeeded", "Active", "Bound", "valid", "True"];
    const BUSY: [&str; 8] = [
        "Pending",
        "Updating",
        "ContainerCreating",
        "PodInitializing",
        "Terminating",
        "Stopping",
        "Ready,SchedulingDisabled",
        "SchedulingGated",
    ];
    const BAD: [&str; 10] =
        ["Failed", "Degraded", "Error", "NotReady", "Unknown", "Evicted", "OOMKilled", "expired", "revoked", "used up"];
    const BAD_ENDS: [&str; 4] = ["Error", "BackOff", "Err", "Killed"];
    let first = status.split_once(',').map_or(status, |(first, _)| first);
    if GOOD.contains(&status) {
        Tone::Good
    } else if BUSY.contains(&status) {
        Tone::Busy
    } else if BAD.contains(&first) || first.starts_with("Err") || BAD_ENDS.iter().any(|end| first.ends_with(end)) {
        Tone::Bad
    } else {
        Tone::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_tone_of_their_meaning() {
        for (word, tone) in [
            ("Running", Tone::Good),
            ("Ready,SchedulingDisabled", Tone::Busy),
            ("NotReady,SchedulingDisabled", Tone::Bad),
            ("CrashLoopBackOff", Tone::Bad),
            ("ErrImagePull", Tone::Bad),
            ("ContainerCreating", Tone::Busy),
            ("web", Tone::Plain),
        ] {
            assert_eq!(tone_of(word), tone, "{word}");
        }
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(paint(false, Tone::Bad, "x"), "x");
        assert_eq!(paint(true, Tone::Plain, "x"), "x");
        assert_eq!(paint(true, Tone::Bad, "x"), "\x1b[31mx\x1b[0m");
    }
}
