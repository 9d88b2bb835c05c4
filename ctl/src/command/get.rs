//! `meshring get`, `proxies` and `history`.

use clap::Args;

use super::{
    DataFormat, Done, Format, OutputOption,
    output::{self, age, count},
    refused,
};
use crate::api::{
    client::Client,
    types::{History, ProxyItem, ResourceItem, Status},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// `vs`, `dr`, `se`, `svc` and so on; `status` for the state of the mesh; all kinds without it
    kind: Option<String>,
    /// One resource only
    name: Option<String>,
    /// One namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How to print it
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: Format,
}

pub(super) async fn run(client: &Client, options: &Options) -> Done {
    if options.kind.as_deref() == Some("status") {
        return status(client, options.output).await;
    }
    let documents = options.output != Format::Table;
    let mut query = format!("/v1/resources?documents={documents}");
    for (key, value) in [("kind", &options.kind), ("namespace", &options.namespace), ("name", &options.name)] {
        if let Some(value) = value {
            query.push_str(&format!("&{key}={}", encode(value)));
        }
    }
    let items: Vec<ResourceItem> = client.get(&query).await?;
    if items.is_empty() && options.name.is_some() {
        let name = options.name.as_deref().unwrap_or_default();
        return Err(refused(format!("no {} named {name}", options.kind.as_deref().unwrap_or("resource"))));
    }
    match options.output {
        Format::Table if items.is_empty() => output::note("no resources"),
        Format::Table => output::print(&output::table(&rows(&items))),
        Format::Yaml => {
            let documents: Vec<_> = items.iter().filter_map(|item| item.document.as_deref()).map(bare).collect();
            output::print(&documents.join("---\n"));
        }
        Format::Json => {
            let objects: Vec<_> = items.into_iter().filter_map(|item| item.object).collect();
            // One object when one was named, a list otherwise: as kubectl does.
            match (options.name.is_some(), <[_; 1]>::try_from(objects)) {
                (true, Ok([object])) => output::json(&object)?,
                (_, Ok([object])) => output::json(&list(vec![object]))?,
                (_, Err(objects)) => output::json(&list(objects))?,
            }
        }
    }
    Ok(())
}

/// A document's text without the `---` that it may begin with.
fn bare(document: &str) -> &str {
    document.strip_prefix("---\n").unwrap_or(document)
}

fn list(items: Vec<serde_json::Value>) -> serde_json::Value {
    serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// Everything that could end a query value is escaped.
fn encode(value: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    value.bytes().map(escape).collect()
}

fn rows(items: &[ResourceItem]) -> Vec<Vec<String>> {
    let head = ["KIND", "NAMESPACE", "NAME", "FROM"].map(str::to_owned).to_vec();
    let row = |item: &ResourceItem| {
        let applied = if item.applied { "applied from " } else { "" };
        let from = format!("{applied}{}:{}", item.file, item.line);
        vec![item.kind.clone(), item.namespace.clone(), item.name.clone(), from]
    };
    std::iter::once(head).chain(items.iter().map(row)).collect()
}

async fn status(client: &Client, format: Format) -> Done {
    let status: Status = client.get("/v1/status").await?;
    match format {
        Format::Json => output::json(&status)?,
        Format::Yaml => return Err(refused("get status: -o table or -o json")),
        Format::Table => output::print(&status_text(&status)),
    }
    Ok(())
}

fn status_text(status: &Status) -> String {
    let retained: Vec<_> = status.retained.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        format!("generation     {} (retained: {})", status.generation, retained.join(", ")),
        format!(
            "proxies        {} connected, {} run this generation on every worker",
            status.proxies, status.proxies_current
        ),
        format!("resources      {}, of which {} from `meshring apply`", status.resources, status.applied_resources),
        format!("mesh           {}", status.mesh),
        format!("configuration  {}", status.config.join(", ")),
        format!("control        version {}, pid {}, up {}", status.version, status.pid, age(status.started_at_ms)),
    ];
    if let Some(rolled_back) = status.rolled_back {
        lines.push(format!("ROLLED BACK    the configuration says generation {}", rolled_back.from));
    }
    if !status.warnings.is_empty() {
        lines.push(count(status.warnings.len(), "warning:", "warnings:"));
        lines.extend(status.warnings.iter().map(|finding| format!("  {finding}")));
    }
    if let Some(problem) = &status.problem {
        let since = status.problem_since_ms.map(age).unwrap_or_default();
        lines.push(format!("NOT IN EFFECT  for {since}: {}", problem.error));
        lines.extend(problem.diagnostics.iter().map(|finding| format!("  {finding}")));
    }
    lines.join("\n") + "\n"
}

pub(super) async fn proxies(client: &Client, options: &OutputOption) -> Done {
    let proxies: Vec<ProxyItem> = client.get("/v1/proxies").await?;
    if options.output == DataFormat::Json {
        return output::json(&proxies);
    }
    if proxies.is_empty() {
        let run_dir = client.run_dir().display();
        output::note(&format!(
            "no proxy is connected; start one with `meshring-proxy --run-dir {run_dir} --workload NAMESPACE/NAME ...`"
        ));
        return Ok(());
    }
    let head = ["PROXY", "PID", "IDENTITY", "STATE", "GENERATIONS", "DRIVER", "LISTENERS", "AGE"];
    let head = head.map(str::to_owned).to_vec();
    let row = |proxy: &ProxyItem| {
        let generations: Vec<_> = proxy.generations.iter().map(ToString::to_string).collect();
        let state = match &proxy.detail {
            Some(detail) => format!("{} ({detail})", proxy.state),
            None => proxy.state.clone(),
        };
        vec![
            format!("{}/{}", proxy.namespace, proxy.workload),
            proxy.pid.to_string(),
            proxy.identity.clone().unwrap_or_else(|| "-".into()),
            state,
            generations.join(","),
            proxy.driver.clone(),
            proxy.listeners.join(", "),
            age(proxy.connected_at_ms),
        ]
    };
    output::print(&output::table(&std::iter::once(head).chain(proxies.iter().map(row)).collect::<Vec<_>>()));
    Ok(())
}

pub(super) async fn history(client: &Client, options: &OutputOption) -> Done {
    let history: History = client.get("/v1/history").await?;
    if options.output == DataFormat::Json {
        return output::json(&history);
    }
    let head = ["GENERATION", "AGE", "BYTES", "CAUSE", "CHANGES"].map(str::to_owned).to_vec();
    let newest = history.entries.len();
    let row = |(index, entry): (usize, &crate::control::state::HistoryEntry)| {
        let mark = match () {
            () if index + 1 == newest && entry.generation == history.active => " (active)",
            () if history.retained.contains(&entry.generation) => " (retained)",
            () => "",
        };
        vec![
            format!("{}{mark}", entry.generation),
            age(entry.at_ms),
            entry.bytes.to_string(),
            entry.cause.clone(),
            entry.changes.join(", "),
        ]
    };
    let rows = std::iter::once(head).chain(history.entries.iter().enumerate().map(row)).collect::<Vec<_>>();
    output::print(&output::table(&rows));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(encode("a&b=c d"), "a%26b%3Dc%20d");
    }
}
