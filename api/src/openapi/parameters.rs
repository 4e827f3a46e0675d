//! What may stand in the queries of requests, by what they do.

/// What may stand in a query or a path.
#[derive(Clone, Copy)]
pub(super) struct Parameter<'a> {
    pub name: &'a str,
    pub place: &'a str,
    pub type_: &'a str,
    pub words: &'a str,
}

pub(super) const fn text<'a>(name: &'a str, words: &'a str) -> Parameter<'a> {
    Parameter { name, place: "query", type_: "string", words }
}

const fn number(name: &'static str, words: &'static str) -> Parameter<'static> {
    Parameter { type_: "integer", ..text(name, words) }
}

const fn flag(name: &'static str, words: &'static str) -> Parameter<'static> {
    Parameter { type_: "boolean", ..text(name, words) }
}

pub(super) const PRETTY: Parameter<'static> = text("pretty", "If 'true', then the output is pretty printed.");
const DRY_RUN: Parameter<'static> = text(
    "dryRun",
    "When present, indicates that modifications should not be persisted. Valid values are: - All: all dry run stages \
     will be processed",
);
const MANAGER: Parameter<'static> = text(
    "fieldManager",
    "fieldManager is a name associated with the actor or entity that is making these changes. The value must be less \
     than 128 characters long, and only contain printable characters.",
);
const VALIDATION: Parameter<'static> = text(
    "fieldValidation",
    "fieldValidation instructs the server on how to handle unknown or duplicate fields: Ignore drops them, Warn drops \
     them with a warning for each, Strict refuses the request.",
);
const FORCE: Parameter<'static> = flag(
    "force",
    "Force is going to \"force\" Apply requests. It means user will re-acquire conflicting fields owned by other \
     people. Force flag must be unset for non-apply patch requests.",
);
const GRACE: Parameter<'static> = number(
    "gracePeriodSeconds",
    "The duration in seconds before the object should be deleted. Value must be non-negative integer. The value zero \
     indicates delete immediately.",
);
const ORPHAN: Parameter<'static> =
    flag("orphanDependents", "Deprecated: use propagationPolicy. Whether dependent objects are orphaned.");
const PROPAGATION: Parameter<'static> = text(
    "propagationPolicy",
    "Whether and how garbage collection will be performed: 'Orphan', 'Background' or 'Foreground'.",
);
const CONTINUE: Parameter<'static> = text("continue", "What the last page of a list gave, to get the next one.");
const FIELDS: Parameter<'static> = text(
    "fieldSelector",
    "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
);
const LABELS: Parameter<'static> = text(
    "labelSelector",
    "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
);
const LIMIT: Parameter<'static> = number("limit", "The maximum number of objects of one page.");
const VERSION: Parameter<'static> = text("resourceVersion", "A constraint on the resource version that is served.");
const MATCH: Parameter<'static> =
    text("resourceVersionMatch", "How resourceVersion is applied: 'NotOlderThan' or 'Exact'.");
const INITIAL: Parameter<'static> =
    flag("sendInitialEvents", "Begin a watch with the objects that there are, and mark where they end.");
const TIMEOUT: Parameter<'static> =
    number("timeoutSeconds", "Timeout for the list/watch call. This limits the duration of the call.");

pub(super) const READ: &[Parameter<'static>] = &[];
pub(super) const WRITE: &[Parameter<'static>] = &[DRY_RUN, MANAGER, VALIDATION];
pub(super) const PATCH: &[Parameter<'static>] = &[DRY_RUN, MANAGER, VALIDATION, FORCE];
pub(super) const DELETE: &[Parameter<'static>] = &[DRY_RUN, GRACE, ORPHAN, PROPAGATION];
pub(super) const LIST: &[Parameter<'static>] = &[
    flag("allowWatchBookmarks", "Ask for watch events of type BOOKMARK."),
    CONTINUE,
    FIELDS,
    LABELS,
    LIMIT,
    VERSION,
    MATCH,
    INITIAL,
    TIMEOUT,
    flag("watch", "Watch for changes to the described resources and return them as a stream of notifications."),
];
pub(super) const DELETE_COLLECTION: &[Parameter<'static>] =
    &[CONTINUE, DRY_RUN, FIELDS, GRACE, LABELS, LIMIT, ORPHAN, PROPAGATION, VERSION, MATCH, INITIAL, TIMEOUT];
const CONTAINER: Parameter<'static> = text("container", "The container; the only one if there is but one.");
pub(super) const LOG: &[Parameter<'static>] = &[
    CONTAINER,
    flag("follow", "Follow the log stream of the pod."),
    number("limitBytes", "The number of bytes after which the output ends."),
    flag("previous", "Return previous terminated container logs."),
    number("sinceSeconds", "A relative time in seconds before the current time from which to show logs."),
    text("sinceTime", "An RFC 3339 time from which to show logs."),
    number("tailLines", "The number of lines from the end of the logs to show."),
    flag("timestamps", "Add an RFC 3339 timestamp at the beginning of every line."),
];
const STDERR: Parameter<'static> = flag("stderr", "Redirect the standard error stream of the container.");
const STDIN: Parameter<'static> = flag("stdin", "Redirect the standard input stream of the container.");
const STDOUT: Parameter<'static> = flag("stdout", "Redirect the standard output stream of the container.");
const TTY: Parameter<'static> = flag("tty", "Whether a terminal is allocated.");
pub(super) const EXEC: &[Parameter<'static>] =
    &[text("command", "The command to execute, an argument each."), CONTAINER, STDERR, STDIN, STDOUT, TTY];
pub(super) const ATTACH: &[Parameter<'static>] = &[CONTAINER, STDERR, STDIN, STDOUT, TTY];
pub(super) const PORT_FORWARD: &[Parameter<'static>] = &[number("ports", "The port to forward.")];
pub(super) const PROXY: &[Parameter<'static>] = &[text("path", "The path to use for the request.")];
