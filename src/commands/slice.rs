//! `taphouse slice`: packets around a moment, from a running server.

use super::query::remote;
use crate::cli::{Output, SliceAction, SliceArgs, SliceStartArgs};
use crate::failure::{Code, Failure};
use anyhow::{Context, anyhow};
use comfy_table::{CellAlignment, Table, presets};
use rpc::{client, v1};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// How often `--wait` looks whether a slice is complete.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) fn slice(args: &SliceArgs, output: Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = client::connect(&args.server).await.map_err(remote)?;
        match &args.action {
            SliceAction::Start(start) => {
                let mut slice = begin(&mut client, start).await?;
                if start.wait || start.save.is_some() {
                    slice = complete(&mut client, slice.id).await?;
                }
                if let Some(path) = &start.save {
                    save(&mut client, slice.id, path).await?;
                }
                print(&[slice], output)
            }
            SliceAction::Stop { id } => {
                let answer = client.slices.stop_slice(v1::StopSliceRequest { id: *id }).await;
                print(&[present(answer.map_err(status)?.into_inner().slice)?], output)
            }
            SliceAction::List => {
                let answer = client.slices.list_slices(v1::ListSlicesRequest {}).await.map_err(status)?;
                print(&answer.into_inner().slices, output)
            }
            SliceAction::Get { id, file } => {
                let bytes = save(&mut client, *id, file).await?;
                eprintln!("taphouse: slice {id} is in {}, {}", super::show(file), bytesize::ByteSize(bytes));
                Ok(())
            }
            SliceAction::Delete { id } => {
                client.slices.delete_slice(v1::DeleteSliceRequest { id: *id }).await.map_err(status)?;
                Ok(())
            }
        }
    })
}

fn status(status: tonic::Status) -> Failure {
    remote(status.into())
}

fn present(slice: Option<v1::Slice>) -> Result<v1::Slice, Failure> {
    Ok(slice.context("the server's answer holds no slice; are client and server of one version?")?)
}

async fn begin(client: &mut client::Client, args: &SliceStartArgs) -> Result<v1::Slice, Failure> {
    let length = |text: &str, option: &str| {
        humantime::parse_duration(text)
            .ok()
            .and_then(|d| prost_types::Duration::try_from(d).ok())
            .ok_or_else(|| Failure::new(Code::Usage, anyhow!("{option} is '{text}', expected a duration such as 30s")))
    };
    let bytes_max: bytesize::ByteSize = args.max_size.parse().map_err(|_| {
        Failure::new(Code::Usage, anyhow!("--max-size is '{}', expected a size such as 64MiB", args.max_size))
    })?;
    let request = v1::StartSliceRequest {
        filter: args.filter.clone().unwrap_or_default(),
        label: args.label.clone(),
        taps: args.taps.clone(),
        before: Some(length(&args.before, "--before")?),
        duration: Some(length(&args.duration, "--duration")?),
        bytes_max: bytes_max.as_u64(),
    };
    present(client.slices.start_slice(request).await.map_err(status)?.into_inner().slice)
}

async fn complete(client: &mut client::Client, id: u64) -> Result<v1::Slice, Failure> {
    loop {
        let answer = client.slices.get_slice(v1::GetSliceRequest { id }).await.map_err(status)?;
        let slice = present(answer.into_inner().slice)?;
        match slice.state.as_str() {
            "recording" => tokio::time::sleep(LOOK_EVERY).await,
            "failed" => return Err(anyhow!("slice {id} failed: {}", slice.ended_by).into()),
            _ => return Ok(slice),
        }
    }
}

/// Saves the file of a slice; never over another file.
async fn save(client: &mut client::Client, id: u64, path: &Path) -> Result<u64, Failure> {
    let mut stream = client.slices.read_slice(v1::ReadSliceRequest { id }).await.map_err(status)?.into_inner();
    let failed = || format!("cannot write {}", super::show(path));
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).with_context(failed)?;
    let mut bytes = 0;
    while let Some(part) = stream.message().await.map_err(status)? {
        file.write_all(&part.chunk).with_context(failed)?;
        bytes += part.chunk.len() as u64;
    }
    file.sync_all().with_context(failed)?;
    Ok(bytes)
}

fn print(slices: &[v1::Slice], output: Output) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table => writeln!(out, "{}", table(slices))?,
        Output::Json => writeln!(out, "{:#}", Value::from(slices.iter().map(document).collect::<Vec<_>>()))?,
        Output::Csv => {
            writeln!(out, "id,state,ended_by,packets,bytes,file_bytes,dropped_queue_full,overwritten,path")?;
            for s in slices {
                let path = s.path.replace('"', "\"\"");
                let ended = s.ended_by.replace('"', "\"\"");
                let counts = [s.packets, s.bytes, s.file_bytes, s.dropped_queue_full, s.overwritten];
                let counts = counts.map(|n| n.to_string()).join(",");
                writeln!(out, "{},{},\"{ended}\",{counts},\"{path}\"", s.id, s.state)?;
            }
        }
        _ => slices.iter().try_for_each(|s| writeln!(out, "{}", document(s)))?,
    }
    Ok(())
}

fn time(t: &Option<prost_types::Timestamp>) -> Option<String> {
    super::status::time(t)
}

fn document(s: &v1::Slice) -> Value {
    json!({
        "id": s.id, "label": s.label, "reason": s.reason, "filter": s.filter, "state": s.state,
        "ended_by": (!s.ended_by.is_empty()).then_some(&s.ended_by), "start_time": time(&s.start_time),
        "packets": s.packets, "bytes": s.bytes, "file_bytes": s.file_bytes,
        "dropped_queue_full": s.dropped_queue_full, "overwritten": s.overwritten,
        "first_packet_time": time(&s.first_packet_time), "last_packet_time": time(&s.last_packet_time), "path": s.path,
    })
}

fn table(slices: &[v1::Slice]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["id", "state", "started", "packets", "size", "missing", "filter", "why", "file"]);
    for s in slices {
        let state = match s.ended_by.as_str() {
            "" => s.state.clone(),
            ended => format!("{} ({ended})", s.state),
        };
        table.add_row([
            s.id.to_string(),
            state,
            time(&s.start_time).unwrap_or_default(),
            s.packets.to_string(),
            bytesize::ByteSize(s.file_bytes).to_string(),
            (s.dropped_queue_full + s.overwritten).to_string(),
            s.filter.clone(),
            s.reason.clone(),
            s.path.clone(),
        ]);
    }
    for index in [0, 3, 5] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
