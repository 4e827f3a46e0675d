//! Probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{name, non_negative, one_of, port, positive};
use crate::field::{Errors, Path};
use crate::names;

const ONE_HANDLER: &str = "may not specify more than 1 handler type";

pub(crate) fn readiness(probe: &Probe, path: &Path, errors: &mut Errors) {
    common(probe, path, errors);
    if probe.termination_grace_period_seconds.is_some() {
        let value = probe.termination_grace_period_seconds;
        errors.invalid(&path.child("terminationGracePeriodSeconds"), value, "must not be set for readinessProbes");
    }
}

/// Liveness and startup probes.
pub(crate) fn deadly(probe: &Probe, path: &Path, errors: &mut Errors) {
    common(probe, path, errors);
    if probe.success_threshold.is_some_and(|threshold| threshold != 1) {
        errors.invalid(&path.child("successThreshold"), probe.success_threshold, "must be 1");
    }
    positive(probe.termination_grace_period_seconds, &path.child("terminationGracePeriodSeconds"), errors);
}

fn common(probe: &Probe, path: &Path, errors: &mut Errors) {
    let mut handlers = Handlers::new(path);
    handlers.exec(probe.exec.as_ref(), errors);
    handlers.http_get(probe.http_get.as_ref(), errors);
    handlers.tcp_socket(probe.tcp_socket.as_ref(), errors);
    if let Some(grpc) = &probe.grpc {
        handlers.count("grpc", errors);
        port(grpc.port, &path.child("grpc").child("port"), errors);
    }
    handlers.finish(errors);
    non_negative(probe.initial_delay_seconds, &path.child("initialDelaySeconds"), errors);
    non_negative(probe.timeout_seconds, &path.child("timeoutSeconds"), errors);
    non_negative(probe.period_seconds, &path.child("periodSeconds"), errors);
    non_negative(probe.success_threshold, &path.child("successThreshold"), errors);
    non_negative(probe.failure_threshold, &path.child("failureThreshold"), errors);
}

pub(crate) fn lifecycle(lifecycle: &Lifecycle, path: &Path, errors: &mut Errors) {
    for (field, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(hook) = hook {
            lifecycle_handler(hook, &path.child(field), errors);
        }
    }
}

fn lifecycle_handler(hook: &LifecycleHandler, path: &Path, errors: &mut Errors) {
    let mut handlers = Handlers::new(path);
    handlers.exec(hook.exec.as_ref(), errors);
    handlers.http_get(hook.http_get.as_ref(), errors);
    handlers.tcp_socket(hook.tcp_socket.as_ref(), errors);
    if let Some(sleep) = &hook.sleep {
        handlers.count("sleep", errors);
        non_negative(Some(sleep.seconds), &path.child("sleep").child("seconds"), errors);
    }
    handlers.finish(errors);
}

/// The handlers of a probe or hook, of which there must be exactly one.
struct Handlers<'a> {
    path: &'a Path,
    found: usize,
}

impl<'a> Handlers<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, found: 0 }
    }

    fn count(&mut self, field: &str, errors: &mut Errors) {
        if self.found > 0 {
            errors.forbidden(&self.path.child(field), ONE_HANDLER);
        }
        self.found += 1;
    }

    fn finish(self, errors: &mut Errors) {
        if self.found == 0 {
            errors.required(self.path, "must specify a handler type");
        }
    }

    fn exec(&mut self, action: Option<&ExecAction>, errors: &mut Errors) {
        let Some(action) = action else { return };
        self.count("exec", errors);
        if action.command.as_ref().is_none_or(Vec::is_empty) {
            errors.required(&self.path.child("exec").child("command"), "");
        }
    }

    fn http_get(&mut self, action: Option<&HTTPGetAction>, errors: &mut Errors) {
        let Some(action) = action else { return };
        self.count("httpGet", errors);
        let path = self.path.child("httpGet");
        if action.path.as_deref().unwrap_or_default().is_empty() {
            errors.required(&path.child("path"), "");
        }
        port_or_name(&action.port, &path.child("port"), errors);
        one_of(action.scheme.as_deref(), &["HTTP", "HTTPS"], &path.child("scheme"), errors);
        for header in action.http_headers.iter().flatten() {
            let valid =
                !header.name.is_empty() && header.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            if !valid {
                let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
                              regex used for validation is '[-A-Za-z0-9]+')";
                errors.invalid(&path.child("httpHeaders"), header.name.as_str(), detail);
            }
        }
    }

    fn tcp_socket(&mut self, action: Option<&TCPSocketAction>, errors: &mut Errors) {
        let Some(action) = action else { return };
        self.count("tcpSocket", errors);
        port_or_name(&action.port, &self.path.child("tcpSocket").child("port"), errors);
    }
}

fn port_or_name(value: &IntOrString, path: &Path, errors: &mut Errors) {
    match value {
        IntOrString::Int(number) => port(*number, path, errors),
        IntOrString::String(text) => name(text, names::port_name, path, errors),
    }
}
