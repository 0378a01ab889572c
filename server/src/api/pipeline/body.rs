//! A request's body: whole, within the limit and in time, and overwritten when it has served.

use std::fmt::Display;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Body;
use zeroize::{Zeroize as _, Zeroizing};

use super::error::Refusal;

/// A body must have come in whole after this long.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Of a body that nobody reads, as much is taken off the wire, bytes, and for as long.
const MAX_DISCARDED_BYTES: usize = 64 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads and drops the body of a request that was refused without it: a client that is still
/// sending when its stream is reset, as HTTP/2 does then (RFC 9113, 8.1), may lose the answer, as
/// curl 7.88 does. A body that is larger or slower is left to that.
pub(super) async fn discard<B>(mut body: B)
where
    B: Body<Data = Bytes> + Unpin,
{
    if usize::try_from(body.size_hint().lower()).map_or(true, |n| n > MAX_DISCARDED_BYTES) {
        return;
    }
    let read = async {
        let mut room = MAX_DISCARDED_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            let left = room.checked_sub(piece.len());
            wipe(piece);
            match left {
                Some(left) => room = left,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, read).await;
}

/// The whole body, within the limit and in time.
pub(super) async fn read_body<B>(body: &mut B, limit: usize) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let too_large = || Refusal::BodyTooLarge(limit);
    if usize::try_from(body.size_hint().lower()).map_or(true, |n| n > limit) {
        return Err(too_large());
    }
    let whole = async {
        let mut first = Bytes::new();
        // Only for a body that comes in several pieces.
        let mut joined: Option<Zeroizing<Vec<u8>>> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::BodyBroken(error.to_string()))?;
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            if first.is_empty() && joined.is_none() {
                if piece.len() > limit {
                    return Err(too_large());
                }
                first = piece;
                continue;
            }
            let joined = joined.get_or_insert_with(|| {
                let expected = usize::try_from(body.size_hint().lower()).unwrap_or(limit);
                let room = first.len() + piece.len() + expected.min(limit);
                let mut all = Zeroizing::new(Vec::with_capacity(room));
                all.extend_from_slice(&first);
                wipe(std::mem::take(&mut first));
                all
            });
            if joined.len() + piece.len() > limit {
                return Err(too_large());
            }
            joined.extend_from_slice(&piece);
            wipe(piece);
        }
        Ok(joined.map_or(first, Bytes::from_owner))
    };
    let mut whole = pin!(whole);
    // Mostly the body came with the head, and needs no timer.
    if let Some(result) = whole.as_mut().now_or_never() {
        return result;
    }
    match tokio::time::timeout(BODY_DEADLINE, whole).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::BodyLate),
    }
}

/// Overwrites a buffer that nobody else holds. hyper's read buffer may be shared with the next
/// request's head; then it is left to be overwritten by what is read next.
pub(super) fn wipe(body: Bytes) {
    if let Ok(mut own) = body.try_into_mut() {
        own.as_mut().zeroize();
    }
}
