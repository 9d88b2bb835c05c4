//! `meshring explain`.

use clap::Args;

use super::{DataFormat, Done, output};
use crate::{
    api::{client::Client, types::ExplainRequest},
    explain::Explanation,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The calling workload
    #[arg(long, value_name = "NAMESPACE/NAME")]
    from: String,
    /// What it asks for
    #[arg(long, required_unless_present = "tcp")]
    url: Option<String>,
    /// What it connects to, for a connection that is no HTTP; `*:PORT` for whatever service has the server name
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "url")]
    tcp: Option<String>,
    /// The server name in the ClientHello of that connection
    #[arg(long, value_name = "NAME", requires = "tcp")]
    sni: Option<String>,
    /// A header of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The method
    #[arg(short = 'X', long, default_value = "GET")]
    method: String,
    /// How to print it
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: DataFormat,
}

pub(super) async fn run(client: &Client, options: Options) -> Done {
    let Options { from, url, tcp, sni, headers, method, output } = options;
    let url = url.unwrap_or_default();
    let request = ExplainRequest { from, url, tcp, sni, method: Some(method), headers };
    let explanation: Explanation = client.post("/v1/explain", &request).await?;
    if output == DataFormat::Json {
        return output::json(&explanation);
    }
    output::print(&explanation.to_string());
    Ok(())
}
