//! `taphouse alerts`: what was found wrong, from a server or from a data folder.

use super::query::remote;
use crate::cli::{AlertsArgs, Output};
use crate::failure::Failure;
use anyhow::Context;
use detect::{Alert, AlertLog};
use rpc::v1::alert_event::Event;
use rpc::{client, v1};
use serde_json::json;
use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;

/// Alerts asked for at a time.
const PAGE: i32 = 1000;

pub(crate) fn alerts(args: &AlertsArgs, output: Output) -> Result<(), Failure> {
    let mut printer = Printer { output, printed: 0, out: std::io::stdout().lock() };
    if let Some(dir) = &args.from.data_dir {
        return printer.all(&read_folder(dir, args)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = client::connect(&args.from.server).await.map_err(remote)?;
        if args.follow {
            follow(&mut client, args, &mut printer).await
        } else {
            printer.all(&list(&mut client, args).await?)
        }
    })
}

fn received(message: v1::Alert) -> anyhow::Result<Alert> {
    let seq = message.seq;
    rpc::alert_from_message(message)
        .with_context(|| format!("alert {seq} from the server makes no sense; are client and server of one version?"))
}

/// The newest `limit` of what comes; 0 keeps all.
fn keep(window: &mut VecDeque<Alert>, alert: Alert, limit: u64) {
    window.push_back(alert);
    if limit > 0 && window.len() as u64 > limit {
        window.pop_front();
    }
}

fn read_folder(dir: &Path, args: &AlertsArgs) -> Result<Vec<Alert>, Failure> {
    // Says what is wrong with a folder that is none of ours.
    storage::StoreReader::open(dir)?;
    let mut window = VecDeque::new();
    let mut after = args.after;
    loop {
        let (alerts, _) = AlertLog::read(dir, after, PAGE as usize)?;
        let Some(last) = alerts.last() else { return Ok(window.into()) };
        after = last.seq;
        for alert in alerts {
            keep(&mut window, alert, args.limit);
        }
    }
}

async fn list(client: &mut client::Client, args: &AlertsArgs) -> Result<Vec<Alert>, Failure> {
    let mut window = VecDeque::new();
    let mut request = v1::ListAlertsRequest { after_seq: args.after, page_size: PAGE, ..Default::default() };
    loop {
        let page = client.alerts.list_alerts(request.clone()).await.map_err(|s| remote(s.into()))?.into_inner();
        for alert in page.alerts {
            keep(&mut window, received(alert)?, args.limit);
        }
        if page.next_page_token.is_empty() {
            return Ok(window.into());
        }
        request.page_token = page.next_page_token;
    }
}

async fn follow(client: &mut client::Client, args: &AlertsArgs, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let request =
        v1::SubscribeAlertsRequest { resume_after: (args.after > 0).then_some(args.after), ..Default::default() };
    let mut events = client.alerts.subscribe_alerts(request).await.map_err(|s| remote(s.into()))?.into_inner();
    printer.header()?;
    while let Some(event) = events.message().await.map_err(|s| remote(s.into()))? {
        match event.event {
            Some(Event::Alert(alert)) => printer.one(&received(alert)?)?,
            Some(Event::Gap(gap)) => eprintln!(
                "taphouse: {} alerts, {} to {}, are not shown: {}",
                gap.count,
                gap.from_seq,
                gap.to_seq,
                match gap.reason() {
                    v1::gap::Reason::NotRetained => "the log no longer has them",
                    _ => "this reader was too slow; `taphouse alerts` may still have them",
                }
            ),
            Some(Event::Heartbeat(_)) | None => {}
        }
    }
    Ok(())
}

/// Alerts as lines. A table here is one line an alert, so that it can be followed.
struct Printer<'a> {
    output: Output,
    printed: u64,
    out: std::io::StdoutLock<'a>,
}

impl Printer<'_> {
    fn all(&mut self, alerts: &[Alert]) -> Result<(), Failure> {
        if self.output == Output::Json {
            writeln!(self.out, "{:#}", json!(alerts))?;
            return Ok(());
        }
        self.header()?;
        for alert in alerts {
            self.one(alert)?;
        }
        if self.output == Output::Table {
            writeln!(self.out, "({} alerts)", self.printed)?;
        }
        Ok(())
    }

    fn header(&mut self) -> Result<(), Failure> {
        match self.output {
            Output::Table => writeln!(
                self.out,
                "{:>6}  {:<30}  {:<8}  {:<8}  {:<14}  summary",
                "seq", "time", "state", "severity", "rule"
            )?,
            Output::Csv => writeln!(self.out, "seq,time,state,severity,rule,tap,src_ip,dst_ip,score,summary")?,
            _ => {}
        }
        Ok(())
    }

    fn one(&mut self, a: &Alert) -> Result<(), Failure> {
        self.printed += 1;
        let time = detect::format_time(a.time);
        let address = |ip: Option<wire::Addr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
        match self.output {
            Output::Csv => writeln!(
                self.out,
                "{},{time},{},{},{},{},{},{},{},{}",
                a.seq,
                a.state.name(),
                a.severity.name(),
                csv(&a.rule),
                csv(&a.tap),
                address(a.src_ip),
                address(a.dst_ip),
                a.score,
                csv(&a.summary)
            )?,
            Output::Table => writeln!(
                self.out,
                "{:>6}  {:<30}  {:<8}  {:<8}  {:<14}  {}",
                a.seq,
                time,
                a.state.name(),
                a.severity.name(),
                a.rule,
                a.summary
            )?,
            // Following, each alert is a document of its own: a JSON array would never close.
            _ => writeln!(self.out, "{}", json!(a))?,
        }
        self.out.flush()?;
        Ok(())
    }
}

/// A field as RFC 4180 has it.
fn csv(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
