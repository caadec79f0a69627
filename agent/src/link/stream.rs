//! One session's stream: what is urgent goes out first, and whatever comes in becomes an event.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use postern_proto::v1::link_client::LinkClient;
use postern_proto::{REFUSAL_KEY, REFUSAL_REVOKED, v1};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::engine::OutboxPort;
use super::http2::{Http2, chain};
use super::session::{ConnId, End, Event};
use super::wire::{FromController, outgoing, readable};

/// Pongs and refusals that wait to be sent. The controller bounds them: one for each of its own frames.
const CONTROL: usize = 256;
/// What the engine has to say and waits to be sent, output 32 KiB a piece: enough to keep a fast link busy, and
/// little to wait for.
const REPORTS: usize = 4;
/// The largest message of the controller, bytes: a plan and its envelope, or a long `Welcome`.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The ends to put frames in.
pub(crate) struct Lanes {
    pub(crate) control: mpsc::Sender<v1::AgentFrame>,
    pub(crate) reports: mpsc::Sender<v1::AgentFrame>,
}

/// The other ends, merged: control before what the engine reports. The order of that is the outbox's to choose,
/// and kept: whoever follows a run sees the output of a step before its end.
pub(crate) struct Outflow {
    lanes: [mpsc::Receiver<v1::AgentFrame>; 2],
}

pub(crate) fn lanes() -> (Lanes, Outflow) {
    let (control, control_out) = mpsc::channel(CONTROL);
    let (reports, reports_out) = mpsc::channel(REPORTS);
    (Lanes { control, reports }, Outflow { lanes: [control_out, reports_out] })
}

impl Stream for Outflow {
    type Item = v1::AgentFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut open = false;
        for lane in &mut self.lanes {
            match lane.poll_recv(context) {
                Poll::Ready(Some(frame)) => return Poll::Ready(Some(frame)),
                Poll::Ready(None) => {}
                Poll::Pending => open = true,
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }
}

/// Moves what the engine has to say into its lane. Nothing is taken from the engine before there is room for it,
/// so that it can still put the event of one run before the output of another.
pub(crate) async fn pump(mut outbox: Box<dyn OutboxPort>, reports: mpsc::Sender<v1::AgentFrame>) {
    while let Ok(room) = reports.reserve().await {
        match outbox.next().await {
            Some(it) => room.send(outgoing(it)),
            None => return,
        }
    }
}

/// Opens the stream and reads it to its end.
pub(crate) async fn run(
    conn: ConnId,
    http2: Http2,
    origin: Uri,
    outflow: Outflow,
    report: mpsc::Sender<Event>,
) {
    let end = read(conn, http2, origin, outflow, &report).await;
    let _ = report.send(Event::Ended(conn, end)).await;
}

async fn read(
    conn: ConnId,
    http2: Http2,
    origin: Uri,
    outflow: Outflow,
    report: &mpsc::Sender<Event>,
) -> End {
    let mut client = LinkClient::with_origin(http2, origin).max_decoding_message_size(MAX_MESSAGE);
    let mut inbound = match client.session(outflow).await {
        Ok(response) => response.into_inner(),
        Err(status) => return judge(&status),
    };
    loop {
        let frame = match inbound.message().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return End::Closed,
            Err(status) => return judge(&status),
        };
        let frame = match FromController::try_from(frame) {
            Ok(frame) => Box::new(frame),
            Err(error) => return End::Invalid(error.to_string()),
        };
        if report.send(Event::Frame(conn, frame)).await.is_err() {
            return End::Closed;
        }
    }
}

/// What a status means for the link.
pub(crate) fn judge(status: &Status) -> End {
    let message = readable(status.message());
    let refusal = status.metadata().get(REFUSAL_KEY).and_then(|value| value.to_str().ok());
    if refusal == Some(REFUSAL_REVOKED) {
        return End::Revoked(message);
    }
    if std::error::Error::source(status).is_some() {
        return End::Broke(readable(&chain(status)));
    }
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::AlreadyExists => End::Refused(message),
        Code::Unimplemented | Code::InvalidArgument | Code::OutOfRange => {
            End::Invalid(format!("{}: {message}", status.code()))
        }
        Code::Cancelled | Code::Unknown => End::Broke(message),
        _ => End::Unavailable(format!("{}: {message}", status.code())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    fn pong(nonce: u64) -> v1::AgentFrame {
        super::super::wire::ToController::Pong(nonce).into()
    }

    fn nonce(frame: Option<v1::AgentFrame>) -> Option<u64> {
        match frame?.kind? {
            v1::agent_frame::Kind::Pong(pong) => Some(pong.nonce),
            _ => None,
        }
    }

    #[tokio::test]
    async fn control_goes_before_reports_and_reports_stay_in_order() {
        let (lanes, mut outflow) = lanes();
        lanes.reports.try_send(pong(2)).unwrap();
        lanes.reports.try_send(pong(3)).unwrap();
        lanes.control.try_send(pong(1)).unwrap();
        for want in 1..=2 {
            assert_eq!(nonce(outflow.next().await), Some(want));
        }
        lanes.control.try_send(pong(9)).unwrap();
        assert_eq!(nonce(outflow.next().await), Some(9), "also when a report was there first");
        drop(lanes);
        assert_eq!(nonce(outflow.next().await), Some(3), "what was put in still goes out");
        assert!(outflow.next().await.is_none());
    }

    #[test]
    fn statuses() {
        assert!(matches!(judge(&Status::unauthenticated("x")), End::Refused(_)));
        assert!(matches!(judge(&Status::resource_exhausted("x")), End::Unavailable(_)));
        assert!(matches!(judge(&Status::unimplemented("x")), End::Invalid(_)));
        let mut revoked = Status::permission_denied("gone");
        revoked.metadata_mut().insert(REFUSAL_KEY, REFUSAL_REVOKED.parse().unwrap());
        assert_eq!(judge(&revoked), End::Revoked("gone".into()));
    }
}
