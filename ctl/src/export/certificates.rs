//! Certificates in the Prometheus text format. Label values come from greetings and configuration; a credential's name holds
//! paths, never content.

use std::{fmt::Write as _, sync::atomic::Ordering, time::SystemTime};

use super::prometheus::{escape, head};
use crate::{
    ca::unix_s,
    control::materials::{CertificateItem, Materials},
};

/// Who has a certificate, as labels: the workload's proxy, and the SPIFFE id, empty where it was given none. By `proxy` and `pid` every
/// other metric of a proxy gets its identity.
fn holder(item: &CertificateItem) -> String {
    let (namespace, workload) = (escape(&item.namespace), escape(&item.workload));
    let id = item.identity.as_deref().map(escape).unwrap_or_default();
    format!("{{proxy=\"{namespace}/{workload}\",pid=\"{}\",spiffe_id=\"{id}\"}}", item.pid)
}

/// Adds the metrics of certificates.
pub fn render(text: &mut String, materials: &Materials) {
    let report = materials.report();
    let now_s = unix_s(SystemTime::now());
    // Negative when it is over: how long ago matters to who looks at a broken mesh.
    let left = |not_after_s: u64| not_after_s.cast_signed() - now_s.cast_signed();
    head(text, "certificate_expiry_seconds", "gauge", "Time until a proxy's own certificate expires.");
    for item in report.identities.iter().filter(|item| item.not_after_s > 0) {
        // Writing to a String cannot fail; the same holds below.
        let _ = writeln!(text, "meshring_certificate_expiry_seconds{} {}", holder(item), left(item.not_after_s));
    }
    head(text, "proxy_identity_installed", "gauge", "1 while a proxy uses the certificate that it was sent last.");
    for item in &report.identities {
        let installed = u8::from(item.state == "installed");
        let _ = writeln!(text, "meshring_proxy_identity_installed{} {installed}", holder(item));
    }
    head(text, "ca_certificate_expiry_seconds", "gauge", "Time until a certificate of the authority expires.");
    for item in &report.authority {
        let (role, state, fingerprint) = (&item.role, &item.state, &item.fingerprint);
        let _ = writeln!(
            text,
            "meshring_ca_certificate_expiry_seconds{{role=\"{role}\",state=\"{state}\",fingerprint=\"{fingerprint}\"}} {}",
            left(item.not_after_s)
        );
    }
    head(text, "credential_expiry_seconds", "gauge", "Time until the certificate of a credential in use expires.");
    for item in report.credentials.iter().filter(|item| item.not_after_s > 0) {
        let name = escape(&item.name);
        let _ = writeln!(text, "meshring_credential_expiry_seconds{{name=\"{name}\"}} {}", left(item.not_after_s));
    }
    head(text, "credential_failures_total", "counter", "Contents of a credential that were refused.");
    for item in &report.credentials {
        let _ =
            writeln!(text, "meshring_credential_failures_total{{name=\"{}\"}} {}", escape(&item.name), item.failures);
    }
    let counters = &materials.counters;
    for (name, help, counter) in [
        ("certificates_issued_total", "Workload certificates that were sent to proxies.", &counters.issued),
        ("certificate_rotations_total", "Of them, replacements of an earlier one.", &counters.rotations),
        (
            "certificate_issue_failures_total",
            "Workload certificates that could not be made or sent; each attempt counts.",
            &counters.issue_failures,
        ),
        ("certificate_denials_total", "Proxies that may not have the identity that they asked for.", &counters.denials),
        ("certificate_refusals_total", "Materials that a proxy did not take.", &counters.refusals),
    ] {
        head(text, name, "counter", help);
        let _ = writeln!(text, "meshring_{name} {}", counter.load(Ordering::Relaxed));
    }
}
