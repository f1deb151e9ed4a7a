//! Slices of packets: on request through `SliceService`, and on alerts that fire.

use crate::config::{Config, OnAlertConfig};
use crate::failure::Failure;
use capture::Filter;
use capture::slice::{
    Predicate, Recorder, RecorderOptions, SliceError, SliceId, SliceInfo, SliceOptions, SliceState, Slices,
    TriggerRequest,
};
use detect::{Alert, AlertState};
use rpc::v1;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::Status;
use wire::{Nanos, TapId};

/// Bytes that may wait between a worker and the disk.
const QUEUE_BYTES: usize = 4 << 20;
/// How long the workers and the disk may take to bring a slice to its end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Size bound of a request that names none.
const BYTES_MAX_DEFAULT: u64 = 64 << 20;

/// Records slices, and knows the taps by name.
pub(crate) struct SliceRecorder {
    slices: Arc<Slices>,
    taps: Vec<String>,
    on_alert: Option<OnAlertConfig>,
}

impl SliceRecorder {
    /// With a recorder for each of `workers` workers.
    pub(crate) fn start(
        config: &Config,
        taps: &[String],
        workers: usize,
    ) -> Result<(Arc<SliceRecorder>, Vec<Recorder>), Failure> {
        let options = SliceOptions {
            total_bytes_max: config.slices.max_size.0,
            active_max: usize::from(config.slices.active_max),
            ..SliceOptions::new(config.data_dir.join("slices"), taps.to_vec())
        };
        let recorder = RecorderOptions {
            history_bytes: usize::try_from(config.slices.ring.0).unwrap_or(usize::MAX),
            snap_bytes: config.slices.snaplen,
            queue_bytes: QUEUE_BYTES,
        };
        let (slices, recorders) = Slices::start(options, workers, recorder)?;
        let recorder = SliceRecorder { slices, taps: taps.to_vec(), on_alert: config.slices.on_alert.clone() };
        Ok((Arc::new(recorder), recorders))
    }

    /// Starts a slice around an alert that fires, if that is wished for.
    pub(crate) fn on_alert(&self, alert: &Alert) {
        let Some(wanted) = self.on_alert.as_ref().filter(|_| alert.state == AlertState::Firing) else { return };
        let text = alert.src_ip.map(|address| format!("host {address}")).unwrap_or_default();
        let request = v1::StartSliceRequest {
            filter: text,
            label: alert.rule.replace('_', "-"),
            taps: vec![alert.tap.clone()],
            before: wanted.before.0.try_into().ok(),
            duration: wanted.duration.0.try_into().ok(),
            bytes_max: wanted.max_size.0,
        };
        match self.trigger(request, alert.summary.clone(), Some(alert.time)) {
            Ok(id) => tracing::info!("alert {}: its packets go to slice {}", alert.key, id.0),
            Err(status) => tracing::warn!("alert {}: no slice of its packets: {}", alert.key, status.message()),
        }
    }

    /// Ends what is being recorded.
    pub(crate) fn shutdown(&self) {
        self.slices.shutdown();
    }

    pub(crate) fn status(&self) -> v1::SliceStatus {
        let counts = self.slices.counts();
        v1::SliceStatus {
            recording: counts.active,
            packets: counts.packets,
            dropped_queue_full: counts.dropped_queue_full,
            overwritten: counts.overwritten,
        }
    }

    fn trigger(&self, request: v1::StartSliceRequest, reason: String, at: Option<Nanos>) -> Result<SliceId, Status> {
        let predicate = match request.filter.trim() {
            "" => None,
            text => Some(predicate(Filter::parse(text).map_err(|e| Status::invalid_argument(e.to_string()))?)),
        };
        let taps = request.taps.iter().map(|name| self.tap(name)).collect::<Result<Vec<_>, _>>()?;
        let duration = length("duration", request.duration)?
            .ok_or_else(|| Status::invalid_argument("duration is missing: how long the slice goes on, such as 30s"))?;
        let trigger = TriggerRequest {
            label: request.label,
            reason,
            filter_text: request.filter,
            predicate,
            taps: (!taps.is_empty()).then_some(taps),
            at,
            before: length("before", request.before)?.unwrap_or_default(),
            duration,
            bytes_max: if request.bytes_max == 0 { BYTES_MAX_DEFAULT } else { request.bytes_max },
        };
        self.slices.trigger(trigger).map_err(|e| status(&e))
    }

    fn tap(&self, name: &str) -> Result<TapId, Status> {
        let number = self.taps.iter().position(|tap| tap == name);
        let known = || self.taps.join(", ");
        number
            .map(|n| TapId(n as u16))
            .ok_or_else(|| Status::invalid_argument(format!("there is no tap '{name}', there are: {}", known())))
    }
}

fn predicate(filter: Filter) -> Predicate {
    Arc::new(move |frame| filter.matches(frame))
}

fn length(field: &str, duration: Option<prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let length = duration.map(Duration::try_from).transpose();
    length.map_err(|_| Status::invalid_argument(format!("{field} is negative or out of range")))
}

impl rpc::SliceControl for SliceRecorder {
    fn start(&self, request: v1::StartSliceRequest) -> Result<v1::Slice, Status> {
        let id = self.trigger(request, "on request".to_owned(), None)?;
        self.slices.get(id).map(message).map_err(|e| status(&e))
    }

    fn stop(&self, id: u64) -> Result<v1::Slice, Status> {
        let id = SliceId(id);
        self.slices.stop(id).map_err(|e| status(&e))?;
        self.slices.wait(id, STOP_PATIENCE).map(message).map_err(|e| status(&e))
    }

    fn list(&self) -> Vec<v1::Slice> {
        let mut slices: Vec<v1::Slice> = self.slices.list().into_iter().map(message).collect();
        slices.sort_by_key(|slice| std::cmp::Reverse(slice.id));
        slices
    }

    fn open(&self, id: u64) -> Result<std::fs::File, Status> {
        self.slices.read(SliceId(id)).map_err(|e| status(&e))
    }

    fn delete(&self, id: u64) -> Result<(), Status> {
        self.slices.delete(SliceId(id)).map_err(|e| status(&e))
    }
}

fn message(slice: SliceInfo) -> v1::Slice {
    let time = |t: Option<Nanos>| t.map(|t| (SystemTime::UNIX_EPOCH + Duration::from_nanos(t.0)).into());
    let (state, failure) = match &slice.state {
        SliceState::Recording => ("recording", None),
        SliceState::Complete => ("complete", None),
        SliceState::Failed(reason) => ("failed", Some(reason.clone())),
    };
    let ended = failure.or_else(|| slice.ended_by.map(|reason| reason.name().to_owned()));
    v1::Slice {
        id: slice.id.0,
        label: slice.label,
        reason: slice.reason,
        filter: slice.filter,
        state: state.to_owned(),
        ended_by: ended.unwrap_or_default(),
        start_time: time(slice.at),
        packets: slice.packets,
        bytes: slice.bytes,
        file_bytes: slice.file_bytes,
        dropped_queue_full: slice.dropped_queue_full,
        overwritten: slice.overwritten,
        first_packet_time: time(slice.first_ts),
        last_packet_time: time(slice.last_ts),
        path: slice.path.display().to_string(),
    }
}

/// The one place where errors of slices become codes.
fn status(error: &SliceError) -> Status {
    let message = error.to_string();
    match error {
        SliceError::Option { .. } => Status::invalid_argument(message),
        SliceError::Active { .. } => Status::resource_exhausted(message),
        SliceError::Unknown { .. } => Status::not_found(message),
        SliceError::Recording { .. } | SliceError::Failed { .. } => Status::failed_precondition(message),
        SliceError::ShutDown => Status::unavailable(message),
        _ => Status::internal(message),
    }
}
