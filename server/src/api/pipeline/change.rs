//! Changes: once begun, they are carried out and recorded whether or not the client waits for them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use strongroom_core::keyring::KeyName;

use super::admission::{Change, InFlightPermit};
use super::answer::{Answer, RequestId};
use super::audit::AuditGuard;
use super::credentials::Presented;
use super::dialect::Dialect;
use super::error::{ApiError, Refusal};
use super::route::{Call, OwnedCaptures, Route, Source};
use super::{Admitted, carry_out, panicked};
use crate::api::Client;

/// A request that changes keys, as it goes on in a task of its own.
pub(super) struct OwnTask {
    pub(super) dialect: &'static dyn Dialect,
    pub(super) id: RequestId,
    pub(super) route: &'static Route,
    pub(super) begun: Instant,
    pub(super) captures: OwnedCaptures,
    pub(super) source: Source,
    pub(super) token: Option<Presented>,
    pub(super) body: bytes::Bytes,
    pub(super) permit: InFlightPermit,
    pub(super) change: Change,
}

impl OwnTask {
    /// The answer, for a client that is still there.
    pub(super) async fn run(self, client: &Arc<Client>) -> Result<Answer, ApiError> {
        let dialect = self.dialect;
        let client = Arc::clone(client);
        let task = async move {
            let (_permit, _change) = (self.permit, self.change);
            let captures = self.captures.as_ref();
            let key = captures.name.map_or("", KeyName::as_str);
            let mut guard =
                AuditGuard::begin(&client, dialect, self.id, self.route, key, self.begun);
            guard.token = self.token.as_ref().map(|token| token.info.id.clone());
            let admitted = Admitted {
                client: &client,
                dialect,
                id: self.id,
                captures: captures.clone(),
                source: &self.source,
                token: self.token.as_ref(),
                if_none_match: None,
            };
            carry_out(guard, admitted, self.body).await
        };
        // `carry_out` catches a handler's panic; a task that is lost all the same was aborted by
        // the runtime's end.
        tokio::spawn(task)
            .await
            .unwrap_or_else(|_| Err(dialect.refuse(Refusal::Stopping)))
    }
}

/// A change that another request brings with it, with lines of its own in the audit log before
/// those of that request: `work`, which is recorded as `route`. As long as it goes on it counts
/// among the requests in flight, though the client goes away.
pub(crate) async fn beside<W>(
    call: &Call<'_>,
    route: &'static Route,
    work: impl FnOnce(Arc<Client>) -> W,
) -> Result<(), ApiError>
where
    W: Future<Output = Result<Answer, ApiError>> + Send + 'static,
{
    let dialect = call.dialect;
    let change = Change::begin(call.client).map_err(|refusal| dialect.refuse(refusal))?;
    let permit = InFlightPermit::another(call.client);
    let client = Arc::clone(call.client);
    let work = work(Arc::clone(&client));
    let (id, name) = (*call.id, call.name.to_owned());
    let token = call.token.map(|token| token.info.id.clone());
    let task = async move {
        let (_permit, _change) = (permit, change);
        let mut guard = AuditGuard::begin(&client, dialect, id, route, &name, Instant::now());
        guard.token = token;
        guard.intend().await?;
        let done = AssertUnwindSafe(work)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(panicked(&client.app, dialect)));
        match done {
            Ok(answer) => guard.record(&answer).await,
            Err(error) => {
                guard.refuse(&error).await?;
                Err(error)
            }
        }
    };
    tokio::spawn(task)
        .await
        .unwrap_or_else(|_| Err(dialect.refuse(Refusal::Stopping)))
}
