//! Enrol streams: a new device with an invite, or one that renews its certificate or leaves.

use super::{Intake, fail, failure, refuse};
use crate::enrolment::{Enrolment, EnrolmentError};
use crate::escalate::{Caller, ClientStream, finish_stream};
use belay_protocol::codec::Message;
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::frame::FrameType;
use belay_protocol::message::{
    EnrolAnswer, EnrolRequest, Failed, FailureCode, LeaveAnswer, LeaveRequest, RenewRequest,
};
use tracing::{debug, info, warn};

/// Serves one enrol stream. `caller` is set on a tunnel with a certificate.
pub async fn serve(enrolment: &Enrolment, caller: Option<&Caller>, intake: &Intake, mut stream: ClientStream) {
    // Whoever comes without a certificate may send little.
    stream.reader.take_only(&[FrameType::EnrolRequest, FrameType::LeaveRequest, FrameType::RenewRequest]);
    let frame = match intake.within(stream.reader.frame()).await {
        Ok(Ok(Some(frame))) => frame,
        Ok(Ok(None)) => return refuse(&mut stream, &ProtocolError::Truncated("the enrolment").into()).await,
        Ok(Err(error)) => return refuse(&mut stream, &error).await,
        Err((failure, code)) => return fail(&mut stream, failure, code).await,
    };
    match (frame.kind, caller) {
        (FrameType::EnrolRequest, _) => match EnrolRequest::from_frame(&frame) {
            Ok(request) => enrol(enrolment, request, &mut stream).await,
            Err(error) => refuse(&mut stream, &error.into()).await,
        },
        (FrameType::LeaveRequest, Some(caller)) => match LeaveRequest::from_frame(&frame) {
            Ok(request) => leave(enrolment, caller, &request, &mut stream).await,
            Err(error) => refuse(&mut stream, &error.into()).await,
        },
        (FrameType::RenewRequest, Some(caller)) => match RenewRequest::from_frame(&frame) {
            Ok(request) => renew(enrolment, caller, &request, &mut stream).await,
            Err(error) => refuse(&mut stream, &error.into()).await,
        },
        (FrameType::LeaveRequest | FrameType::RenewRequest, None) => {
            let message = "only a device with a certificate can renew it, or leave";
            fail(
                &mut stream,
                failure(FailureCode::UNAUTHENTICATED, message, "connect with the certificate"),
                StreamCode::REFUSED,
            )
            .await;
        }
        (kind, _) => {
            let error =
                ProtocolError::Unexpected { got: kind.name(), expected: "EnrolRequest, RenewRequest or LeaveRequest" };
            refuse(&mut stream, &error.into()).await;
        }
    }
}

async fn enrol(enrolment: &Enrolment, request: EnrolRequest, stream: &mut ClientStream) {
    match enrolment.enrol(request).await {
        Ok(answer) => {
            info!(tenant = %answer.tenant, device = %answer.device, "device enrolled");
            send(stream, &answer).await;
        }
        Err(error) => fail(stream, enrolment_failed(&error), StreamCode::REFUSED).await,
    }
}

async fn renew(enrolment: &Enrolment, caller: &Caller, request: &RenewRequest, stream: &mut ClientStream) {
    if let Err(failure) = enrolment.may_renew(&caller.device) {
        return fail(stream, *failure, StreamCode::REFUSED).await;
    }
    match enrolment.renew(&caller.tenant, &caller.device, request).await {
        Ok(answer) => {
            info!(expires_ms = answer.expires_ms, "certificate renewed");
            if stream.writer.queue(&answer).is_ok() {
                finish_stream(stream, StreamCode::NO_ERROR).await;
            }
        }
        Err(error) => fail(stream, enrolment_failed(&error), StreamCode::REFUSED).await,
    }
}

fn enrolment_failed(error: &EnrolmentError) -> Failed {
    match error {
        EnrolmentError::Store(_) => warn!(%error, "enrolment failed"),
        // Anybody can cause it, as often as he likes.
        _ => debug!(%error, "enrolment refused"),
    }
    match error {
        EnrolmentError::Refused(why) => {
            failure(FailureCode::INVITE_REFUSED, *why, "ask for a new invite: belayd invite <tenant>")
        }
        EnrolmentError::Request(why) => {
            failure(FailureCode::INVALID_REQUEST, why, "make a new key and certificate request")
        }
        EnrolmentError::Revoked => {
            failure(FailureCode::REVOKED, "access was revoked", "ask the operator of the relay for a new invite")
        }
        EnrolmentError::Store(_) => failure(
            FailureCode::STORE_UNAVAILABLE,
            "the relay could not record the device",
            "try again in a moment; an invite is still good",
        ),
    }
}

async fn send(stream: &mut ClientStream, answer: &EnrolAnswer) {
    if stream.writer.queue(answer).is_ok() {
        finish_stream(stream, StreamCode::NO_ERROR).await;
    }
}

async fn leave(enrolment: &Enrolment, caller: &Caller, request: &LeaveRequest, stream: &mut ClientStream) {
    let why: String = request.reason.chars().filter(|c| !c.is_control()).take(200).collect();
    if let Err(error) = enrolment.leave(&caller.tenant, &caller.device, &why).await {
        warn!(%error, "cannot revoke a device that leaves");
        let failure = failure(FailureCode::STORE_UNAVAILABLE, "the relay could not revoke the device", "try again");
        return fail(stream, failure, StreamCode::INTERNAL).await;
    }
    info!("device left");
    if stream.writer.queue(&LeaveAnswer { device: caller.device.clone() }).is_ok() {
        finish_stream(stream, StreamCode::NO_ERROR).await;
    }
    enrolment.disconnect(&caller.device);
}
