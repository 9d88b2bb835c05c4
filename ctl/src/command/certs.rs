//! `meshring certs`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{DataFormat, Done, duration, output};
use crate::{
    api::{
        certs::{Certs, MadeToken, MakeToken, RevokeToken, RotateRoot, TokenItem},
        client::Client,
    },
    ca::Phase,
    control::materials::{CertificateItem, CredentialItem, RootStep, RotationItem},
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    /// How to print it
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: DataFormat,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make or revoke a join token, by which a proxy of another user proves what it may be
    Token(TokenOptions),
    /// Replace the root: a new one reaches every proxy first, then it issues, then the old one leaves
    RotateRoot(RotateOptions),
    /// Print the roots of the trust bundle as PEM
    Bundle,
}

#[derive(Debug, Args)]
struct TokenOptions {
    /// The identity that it is good for
    #[arg(long = "for", value_name = "NAMESPACE/SERVICE-ACCOUNT", required_unless_present = "revoke")]
    account: Option<String>,
    /// Time for its first use; from then on it is its first user's until it is revoked
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = long_duration)]
    ttl: Duration,
    /// Revoke this token
    #[arg(long, value_name = "ID", conflicts_with_all = ["account", "ttl"])]
    revoke: Option<String>,
}

#[derive(Debug, Args)]
struct RotateOptions {
    /// Let the new root issue without waiting for proxies that do not have it yet: they will refuse their peers
    #[arg(long, conflicts_with = "abort")]
    activate: bool,
    /// Take the new root back before it issues
    #[arg(long)]
    abort: bool,
}

/// As [`duration`], and `24h`, `30d`.
pub(super) fn long_duration(text: &str) -> Result<Duration, String> {
    let unit = match text.as_bytes().last() {
        Some(b'h') => 3600.0,
        Some(b'd') => 86_400.0,
        _ => return duration(text),
    };
    let number = text[..text.len() - 1].parse::<f64>().ok().filter(|number| *number >= 0.0);
    let wrong = || format!("{text:?} is no duration: write it as 30s, 5m, 24h or 30d");
    Duration::try_from_secs_f64(number.ok_or_else(wrong)? * unit).map_err(|_| wrong())
}

pub(super) async fn run(client: &Client, options: Options) -> Done {
    match options.action {
        None => show(client, options.output).await,
        Some(Action::Token(options)) => token(client, options).await,
        Some(Action::RotateRoot(options)) => rotate(client, &options).await,
        Some(Action::Bundle) => {
            let certs: Certs = client.get("/v1/certs").await?;
            let roots = certs.certificates.authority.iter().filter(|item| item.role == "root");
            roots.for_each(|root| output::print(&root.pem));
            Ok(())
        }
    }
}

async fn token(client: &Client, options: TokenOptions) -> Done {
    if let Some(id) = options.revoke {
        let revoked: RevokeToken = client.post("/v1/certs/revoke", &RevokeToken { id }).await?;
        output::print(&format!("join token {} is revoked\n", revoked.id));
        return Ok(());
    }
    let request = MakeToken { account: options.account.unwrap_or_default(), ttl_s: options.ttl.as_secs() };
    let made: MadeToken = client.post("/v1/certs/token", &request).await?;
    output::print(&format!("{}\n", made.token));
    Ok(())
}

async fn rotate(client: &Client, options: &RotateOptions) -> Done {
    let step = match (options.activate, options.abort) {
        (true, _) => RootStep::Activate,
        (_, true) => RootStep::Abort,
        _ => RootStep::Begin,
    };
    let rotation: RotationItem = client.post("/v1/certs/root", &RotateRoot { step }).await?;
    output::print(&format!("{}\n", rotation_text(&rotation)));
    Ok(())
}

async fn show(client: &Client, format: DataFormat) -> Done {
    let certs: Certs = client.get("/v1/certs").await?;
    if format == DataFormat::Json {
        return output::json(&certs);
    }
    output::print(&text(&certs, now_s()));
    Ok(())
}

fn now_s() -> u64 {
    meshring_core::clock::unix_ms() / 1000
}

fn text(certs: &Certs, now_s: u64) -> String {
    let Certs { certificates: all, tokens } = certs;
    let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut text = format!("trust domain {}; {}\n\n", all.trust_domain, rotation_text(&all.rotation));
    let mut rows = vec![row(&["AUTHORITY", "STATE", "SHA-256", "EXPIRES", "SUBJECT"])];
    rows.extend(
        all.authority.iter().map(|item| {
            row(&[&item.role, &item.state, &item.fingerprint, &left(item.not_after_s, now_s), &item.subject])
        }),
    );
    text += &output::table(&rows);
    if !all.identities.is_empty() {
        let mut rows = vec![row(&["PROXY", "STATE", "IDENTITY", "SERIAL", "ROOT", "EXPIRES", "ROTATES"])];
        rows.extend(all.identities.iter().map(|item| identity_row(item, now_s)));
        text += &format!("\n{}", output::table(&rows));
    }
    if !all.credentials.is_empty() {
        let mut rows = vec![row(&["CREDENTIAL", "STATE", "SUBJECT", "SERIAL", "EXPIRES", "PROXIES"])];
        rows.extend(all.credentials.iter().map(|item| credential_row(item, now_s)));
        text += &format!("\n{}", output::table(&rows));
    }
    if !tokens.is_empty() {
        let mut rows = vec![row(&["TOKEN", "FOR", "USED BY", "EXPIRES"])];
        rows.extend(tokens.iter().map(|item| token_row(item, now_s)));
        text += &format!("\n{}", output::table(&rows));
    }
    // Reasons are sentences: below the tables, not in them.
    let identities = all.identities.iter().filter_map(|item| {
        Some(format!("{}/{} (pid {}): {}\n", item.namespace, item.workload, item.pid, item.detail.as_ref()?))
    });
    let credentials = all.credentials.iter().flat_map(|item| {
        let refused = item.refused.iter().map(|refused| format!("{}: refused by {refused}\n", item.name));
        item.detail.iter().map(|detail| format!("{}: {detail}\n", item.name)).chain(refused).collect::<Vec<_>>()
    });
    let details: String = identities.chain(credentials).collect();
    if details.is_empty() { text } else { format!("{text}\n{details}") }
}

fn identity_row(item: &CertificateItem, now_s: u64) -> Vec<String> {
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let (expires, rotates) = match item.not_after_s {
        0 => ("-".into(), "-".into()),
        end => (left(end, now_s), left(item.rotate_at_s, now_s)),
    };
    vec![
        format!("{}/{} ({})", item.namespace, item.workload, item.pid),
        item.state.clone(),
        dash(&item.identity),
        dash(&item.serial),
        dash(&item.root),
        expires,
        rotates,
    ]
}

fn credential_row(item: &CredentialItem, now_s: u64) -> Vec<String> {
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let expires = if item.not_after_s == 0 { "-".into() } else { left(item.not_after_s, now_s) };
    vec![
        item.name.clone(),
        item.state.clone(),
        dash(&item.subject),
        dash(&item.serial),
        expires,
        item.installed.to_string(),
    ]
}

fn token_row(item: &TokenItem, now_s: u64) -> Vec<String> {
    let used = item.uid.map_or_else(|| "-".into(), |uid| format!("user id {uid}"));
    let expires = if item.uid.is_some() { "-".into() } else { left(item.expires_s, now_s) };
    vec![item.id.clone(), item.account.clone(), used, expires]
}

fn rotation_text(rotation: &RotationItem) -> String {
    match (rotation.phase, rotation.missing.as_slice()) {
        (Phase::Steady, _) => "no root is being replaced".into(),
        (Phase::Prepared { .. }, []) => "a new root is at every proxy, and will issue within seconds".into(),
        (Phase::Prepared { .. }, missing) => {
            format!("a new root is on its way; it will issue when these have it: {}", missing.join(", "))
        }
        (Phase::Draining { until_s }, _) => {
            format!("a new root issues; the old one leaves the bundle in {}", left(until_s, now_s()))
        }
    }
}

/// `in 23h`, `3m ago`.
fn left(at_s: u64, now_s: u64) -> String {
    let seconds = at_s.abs_diff(now_s);
    let amount = match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    };
    if at_s < now_s { format!("{amount} ago") } else { amount }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_may_be_hours_and_days() {
        assert_eq!(long_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(long_duration("1.5d"), Ok(Duration::from_secs(129_600)));
        assert_eq!(long_duration("10s"), Ok(Duration::from_secs(10)));
        for wrong in ["h", "-1h", "1e400d", "nand", ""] {
            assert!(long_duration(wrong).unwrap_err().contains("write it as"), "{wrong}");
        }
    }

    #[test]
    fn times_are_told_as_people_do() {
        assert_eq!(left(100, 40), "60s");
        assert_eq!(left(40, 100), "60s ago");
        assert_eq!(left(90_000, 0), "25h");
        assert_eq!(left(400 * 86_400, 0), "400d");
    }
}
