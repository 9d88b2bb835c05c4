//! `meshring demo`: the whole mesh on one machine, with real processes and real traffic, told as a story.

mod mesh;
pub(super) mod sample;
mod traffic;

use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    mesh::Mesh,
    traffic::{Load, Tally},
};
use super::{Done, Failure, output, refused};
use crate::{
    api::{
        certs::Certs,
        types::{File, Files, Outcome},
    },
    export::{ProxyStats, Stats},
};

/// The user's own example, applied as it is.
const REVIEWS_80_20: &str = include_str!("reviews-80-20.yaml");
/// Requests that measure the first split: the standard deviation of a share of 80 % is then 0.9 %.
const REQUESTS: usize = 2_000;
/// Requests per second of the background traffic of `--hold`, so that `meshring top` has something to show.
const HOLD_REQUESTS_PER_SECOND: u32 = 50;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Keep everything up until Ctrl-C, to try commands on it
    #[arg(long)]
    hold: bool,
}

pub(super) async fn run(options: Options) -> Done {
    let mut ends = Ends::new().map_err(refused)?;
    let mut mesh = Mesh::new()?;
    let told = tokio::select! {
        told = Box::pin(tell(&mut mesh, &options)) => told,
        () = ends.come() => {
            output::print("\nInterrupted: ending everything that was started.\n");
            Ok(())
        }
    };
    let told = told.map_err(|failure| mesh.with_logs(&failure));
    mesh.end().await;
    told
}

/// The signals that end the demo. Children are in process groups of their own, so that they end after their clients.
struct Ends([tokio::signal::unix::Signal; 3]);

impl Ends {
    fn new() -> std::io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn come(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    }
}

async fn tell(mesh: &mut Mesh, options: &Options) -> Done {
    output::print(
        "meshring demo: a web shop of three services with a service mesh between them, all on this machine.\n\
         A service mesh carries the calls between services through small proxies (\"sidecars\"), so that one file\n\
         decides which version of a service gets which share of the calls, with no change of the services.\n\n",
    );
    mesh.start().await?;
    output::print(&mesh.topology());
    output::print(&identities(mesh).await?);

    output::print("1. This file says how the calls to `reviews` are split between its two versions:\n\n");
    output::print(&indented(REVIEWS_80_20));
    let outcome = apply(mesh, "reviews-80-20.yaml", REVIEWS_80_20).await?;
    output::print(&format!("\n   meshring apply: {}\n\n", live(&outcome)?));

    output::print("2. 2,000 page views; for each, productpage calls http://reviews/ through its sidecar:\n\n");
    let load = Load::start(mesh.productpage(), Some(REQUESTS));
    let first = load.finish().await;
    output::print(&shares(&first.all()));
    output::print(&format!(
        "   {} of {} failed; {:.0} page views per second, half of them within {:.1} ms\n\n",
        first.failures(),
        first.all().total(),
        first.per_second(),
        first.p50_ms()
    ));
    first.check()?;
    output::print(&handshakes(mesh).await?);

    output::print("3. The same file with 50 and 50, applied while page views go on:\n\n");
    let second = change_under_traffic(mesh).await?;
    output::print(&shares(&second));

    output::print(&next_steps(mesh, options.hold));
    if options.hold {
        let load = Load::steady(mesh.productpage(), HOLD_REQUESTS_PER_SECOND);
        mesh.watch_children().await?;
        drop(load);
    }
    Ok(())
}

/// Who the sidecars are to each other, as control has issued it.
async fn identities(mesh: &Mesh) -> Result<String, Failure> {
    let certs: Certs = mesh.client().get("/v1/certs").await?;
    let mut text =
        "   The sidecars speak mutual TLS with each other; each proves who it is by a certificate of control:\n"
            .to_owned();
    for item in &certs.certificates.identities {
        let identity = item.identity.as_deref().unwrap_or("no identity");
        text.push_str(&format!("     {}/{}: {identity} ({})\n", item.namespace, item.workload, item.state));
    }
    Ok(text + "   `meshring certs` shows them, and until when they are valid.\n\n")
}

/// That the page views went over TLS: by the sidecars' own counts.
async fn handshakes(mesh: &Mesh) -> Result<String, Failure> {
    let stats: Stats = mesh.client().get("/v1/stats").await?;
    let sum = |of: fn(&ProxyStats) -> u64| stats.proxies.iter().map(of).sum::<u64>();
    let (begun, refused) = (sum(|proxy| proxy.tls_handshakes), sum(|proxy| proxy.tls_refused));
    if begun == 0 {
        return Err(super::refused("the sidecars have not spoken TLS with each other"));
    }
    Ok(format!("   {begun} TLS handshakes counted at both ends together, {refused} of them refused\n\n"))
}

async fn change_under_traffic(mesh: &Mesh) -> Result<Tally, Failure> {
    let load = Load::start(mesh.productpage(), None);
    load.reach(REQUESTS / 2).await;
    let changed = mesh.half_and_half();
    let outcome = apply(mesh, "reviews-50-50.yaml", &changed).await?;
    let mark = load.mark();
    output::print(&format!("   meshring apply: {}\n\n", live(&outcome)?));
    load.reach(load.count() + REQUESTS).await;
    let measured = load.finish().await;
    output::print(&format!(
        "   {} of {} failed while the split changed. Since then:\n",
        measured.failures(),
        measured.all().total()
    ));
    measured.check()?;
    Ok(measured.since(mark))
}

async fn apply(mesh: &Mesh, path: &str, text: &str) -> Result<Outcome, Failure> {
    let files = Files { files: vec![File { path: path.to_owned(), text: text.to_owned() }] };
    let outcome = mesh.client().post("/v1/apply?wait=true", &files).await?;
    Ok(outcome)
}

/// `live on 4 workers of 2 sidecars in 1.2 ms, as generation 2`.
fn live(outcome: &Outcome) -> Result<String, Failure> {
    let applied = outcome.applied.as_ref().filter(|applied| applied.complete);
    let applied = applied.ok_or_else(|| refused("the change did not reach every worker within 5 s"))?;
    Ok(format!(
        "live on all {} workers of {} sidecars in {:.1} ms (generation {})",
        applied.workers, applied.proxies, applied.ms, outcome.generation
    ))
}

/// The document without the comment before it.
fn indented(yaml: &str) -> String {
    yaml.lines().skip_while(|line| line.starts_with('#')).map(|line| format!("     {line}\n")).collect()
}

fn shares(tally: &Tally) -> String {
    const WIDTH: usize = 40;
    let row = |(version, count): (&String, &usize)| {
        let percent = 100.0 * *count as f64 / tally.total().max(1) as f64;
        let filled = (percent / 100.0 * WIDTH as f64).round() as usize;
        let bar = "#".repeat(filled) + &".".repeat(WIDTH - filled.min(WIDTH));
        format!("   reviews {version}  {bar}  {count:>6} = {percent:.1} %\n")
    };
    let mut rows: Vec<String> = tally.versions().iter().map(row).collect();
    rows.reverse();
    rows.concat() + "\n"
}

fn next_steps(mesh: &Mesh, hold: bool) -> String {
    let meshring = mesh.own_name();
    let run_dir = mesh.run_dir().display();
    if !hold {
        return format!(
            "That was all: no service was restarted or changed, only the file. Everything is shut down again.\n\n\
             To try it yourself:  {meshring} demo --hold     keeps this mesh up and prints commands for it\n\
             To use it:           {meshring} control --config YOUR_YAML_DIR --run-dir DIR\n\
             \u{20}                    {meshring}-proxy --run-dir DIR --workload NAMESPACE/NAME --outbound ADDR --inbound ADDR=APP\n\
             \u{20}                    {meshring} --help\n"
        );
    }
    format!(
        "Everything stays up, with {HOLD_REQUESTS_PER_SECOND} page views per second, until Ctrl-C. In another terminal:\n\n\
         \u{20}  export MESHRING_RUN_DIR={run_dir}\n\
         \u{20}  {meshring} top                                    # live rates, latencies and shares\n\
         \u{20}  {meshring} explain --from default/productpage-v1 --url http://reviews/\n\
         \u{20}  {meshring} get vs reviews -o yaml                 # what is in effect\n\
         \u{20}  {meshring} apply -f {fifty}    # edit the weights in it first\n\
         \u{20}  {meshring} history\n\
         \u{20}  {meshring} rollback                               # the generation before, in microseconds\n\
         \u{20}  {meshring} proxies\n\
         \u{20}  {meshring} certs                                  # who is who, until when\n\
         \u{20}  curl http://{page}/                    # one page view\n\n",
        fifty = mesh.fifty_path().display(),
        page = mesh.productpage(),
    )
}

/// How long a process may take to come up.
const START_MAX: Duration = Duration::from_secs(10);
