//! A row of a dialect's table, what a path leads to, and what a handler is given.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use strongroom_core::keyring::KeyName;
use strongroom_core::policy::Operation;
use strongroom_core::tls::Peer;

use super::Admitted;
use super::admit;
use super::answer::{Answer, RequestId};
use super::audit::AuditGuard;
use super::credentials::Presented;
use super::dialect::Dialect;
use super::error::ApiError;
use crate::api::{App, Client};

/// What a method means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// GET.
    Read,
    /// LIST, or GET with `?list=true`.
    List,
    /// POST and PUT.
    Update,
    /// DELETE.
    Delete,
    /// HEAD.
    Head,
}

/// How much body is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// 64 KiB: settings, no data.
    Small,
    /// The endpoint's `max_body`.
    Data,
}

impl Limit {
    /// [`Limit::Small`], bytes.
    const SMALL_BYTES: usize = 64 * 1024;

    /// Bytes, where no body may have more than `max_body`.
    pub(crate) fn bytes(self, max_body: usize) -> usize {
        match self {
            Self::Small => Self::SMALL_BYTES.min(max_body),
            Self::Data => max_body,
        }
    }
}

/// Understands a request, begins it ([`Ask::begin`]) and carries it out.
pub(crate) type Handler =
    for<'c, 'g> fn(
        Ask<'c, 'g>,
    ) -> Pin<Box<dyn Future<Output = Result<Answer, ApiError>> + Send + 'c>>;

/// What a request may carry.
pub(crate) struct Request {
    /// The parameters' names.
    pub(crate) names: &'static [&'static str],
    /// What the document says of each, in the same order.
    pub(crate) parameters: &'static [Parameter],
    /// Those that each item of a batch may hold.
    pub(crate) item: &'static [Member],
    /// Those that it must.
    pub(crate) needed_in_item: &'static [&'static str],
    /// Names that are known, and would change what is done in a way that there is not here.
    pub(crate) refused: &'static [&'static str],
    /// Any other name is refused too.
    pub(crate) strict: bool,
}

/// What an item of a batch may hold.
#[derive(Clone, Copy)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// The type that a member has in JSON, or null.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Text,
    Integer,
}

/// A parameter, as the document has it.
pub(crate) struct Parameter {
    /// The lines of its description.
    pub(crate) about: &'static [&'static str],
    /// Its JSON Schema, without the description.
    pub(crate) schema: fn() -> serde_json::Value,
    /// A request without it is refused.
    pub(crate) needed: bool,
}

impl Parameter {
    /// Its description; empty if there is none.
    pub(crate) fn about(&self) -> String {
        let lines: Vec<&str> = self.about.iter().map(|line| line.trim()).collect();
        lines.join(" ")
    }
}

/// One row of a table.
pub(crate) struct Route {
    /// The method's meaning.
    pub(crate) verb: Verb,
    /// Segments below the dialect's own beginning; `{…}` captures one.
    pub(crate) path: &'static str,
    /// `path` up to its first `{`, and the rest: most rows are out of question by how a request's
    /// path begins.
    pub(crate) parts: (&'static str, &'static str),
    /// What the policy is asked; `None`: any client whose certificate is good may.
    pub(crate) operation: Option<Operation>,
    /// Its name in metrics and in the audit log: the policy's word where there is one.
    pub(crate) label: &'static str,
    /// What it may carry.
    pub(crate) request: &'static Request,
    /// How much body is taken.
    pub(crate) limit: Limit,
    /// One line in the audit log for each request, not only for those that are refused.
    pub(crate) audited: bool,
    /// Changes keys: once begun it is carried out and audited even if the client goes away.
    pub(crate) mutates: bool,
    pub(crate) handler: Handler,
}

impl Route {
    /// Whether a request that can't be audited is refused. What shows that the audit log can't be
    /// written must be answered just then.
    pub(crate) fn needs_audit(&self) -> bool {
        self.audited
            && !matches!(
                self.operation,
                Some(Operation::Metrics | Operation::StatusPage)
            )
    }
}

/// A path's beginning without captures, and the rest.
pub(crate) const fn parts(path: &'static str) -> (&'static str, &'static str) {
    let mut literal = 0;
    while literal < path.len() && path.as_bytes()[literal] != b'{' {
        literal += 1;
    }
    path.split_at(literal)
}

/// `Allow` for a path that has these rows.
pub(crate) fn allow<'r>(rows: impl Iterator<Item = &'r Route>) -> String {
    let methods: Vec<&str> = rows
        .map(|route| match route.verb {
            Verb::Read => "GET",
            Verb::List => "LIST, GET",
            Verb::Update => "POST, PUT",
            Verb::Delete => "DELETE",
            Verb::Head => "HEAD",
        })
        .collect();
    methods.join(", ")
}

/// Not a path: what is not there, for the metrics and the audit log.
pub(super) static NO_SUCH_ROUTE: Route = Route {
    verb: Verb::Read,
    path: "",
    parts: ("", ""),
    operation: None,
    label: "none",
    request: &Request {
        names: &[],
        parameters: &[],
        item: &[],
        needed_in_item: &[],
        refused: &[],
        strict: false,
    },
    limit: Limit::Small,
    audited: false,
    mutates: false,
    handler: |_| Box::pin(std::future::ready(Err(ApiError::empty(404)))),
};

/// Values that a path gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Captures<'a> {
    /// The key.
    pub(crate) name: Option<KeyName<&'a str>>,
    /// The other ones, in the path's order.
    pub(crate) others: [Option<&'a str>; 2],
    /// The names of those that a parameter of the body may not replace.
    pub(crate) names: &'static [&'static str],
}

impl Captures<'_> {
    /// For a request that goes on without its head.
    pub(super) fn to_owned(&self) -> OwnedCaptures {
        OwnedCaptures {
            name: self.name.map(KeyName::to_owned),
            others: self.others.map(|other| other.map(str::to_owned)),
            names: self.names,
        }
    }
}

/// [`Captures`] that hold their values.
pub(super) struct OwnedCaptures {
    name: Option<KeyName>,
    others: [Option<String>; 2],
    names: &'static [&'static str],
}

impl OwnedCaptures {
    pub(super) fn as_ref(&self) -> Captures<'_> {
        let [first, second] = &self.others;
        Captures {
            name: self.name.as_ref().map(KeyName::borrowed),
            others: [first.as_deref(), second.as_deref()],
            names: self.names,
        }
    }
}

/// What method and path lead to.
pub(crate) struct Found<'p> {
    pub(crate) route: &'static Route,
    pub(crate) captures: Captures<'p>,
}

/// What is kept of a request's head for whoever reads its parameters.
pub(crate) struct Source {
    /// Behind the path, as it came; empty if there is none.
    pub(crate) query: String,
    /// The body is called a form.
    pub(crate) form: bool,
}

impl Source {
    pub(super) fn of(head: &Parts) -> Self {
        let content_type = head.headers.get(header::CONTENT_TYPE);
        Self {
            query: head.uri.query().unwrap_or_default().to_owned(),
            form: is_called_form(content_type.map(HeaderValue::as_bytes)),
        }
    }
}

/// Whether a `Content-Type` says that a body is a form.
pub(crate) fn is_called_form(content_type: Option<&[u8]>) -> bool {
    let media_type = content_type
        .and_then(|text| text.split(|&b| b == b';').next())
        .unwrap_or_default();
    media_type
        .trim_ascii()
        .eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}

/// A request that was admitted, not yet understood. A handler has no way to the keys before it has
/// begun it.
pub(crate) struct Ask<'c, 'g> {
    pub(super) guard: &'c mut AuditGuard<'g>,
    pub(super) admitted: &'c Admitted<'c>,
    pub(super) body: &'c [u8],
}

impl<'c> Ask<'c, '_> {
    /// The row.
    pub(crate) fn route(&self) -> &'static Route {
        self.guard.route
    }

    /// What the path gave.
    pub(crate) fn captures(&self) -> &'c Captures<'c> {
        &self.admitted.captures
    }

    /// Of its head, for whoever reads its parameters.
    pub(crate) fn source(&self) -> &'c Source {
        self.admitted.source
    }

    /// The whole body.
    pub(crate) fn body(&self) -> &'c [u8] {
        self.body
    }

    /// The request is understood. Of a change, that it begins is durable in the audit log when this
    /// returns; `Err`: it must not begin.
    pub(crate) async fn begin(self) -> Result<Call<'c>, ApiError> {
        if self.guard.route.mutates {
            self.guard.intend().await?;
        }
        let admitted = self.admitted;
        Ok(Call {
            client: admitted.client,
            app: &admitted.client.app,
            peer: &admitted.client.peer,
            dialect: admitted.dialect,
            id: &admitted.id,
            key: admitted.captures.name,
            name: admitted.captures.name.map_or("", KeyName::as_str),
            captures: admitted.captures.others,
            token: admitted.token,
            if_none_match: admitted.if_none_match,
        })
    }
}

/// What carries a request out is given.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) client: &'a Arc<Client>,
    pub(crate) app: &'a Arc<App>,
    pub(crate) peer: &'a Peer,
    pub(super) dialect: &'static dyn Dialect,
    pub(crate) id: &'a RequestId,
    key: Option<KeyName<&'a str>>,
    /// The same for words, empty where the path names none.
    pub(crate) name: &'a str,
    /// The path's other captures.
    pub(crate) captures: [Option<&'a str>; 2],
    pub(crate) token: Option<&'a Presented>,
    /// What the client has already of what it reads.
    pub(crate) if_none_match: Option<&'a str>,
}

impl<'a> Call<'a> {
    /// The key that the path names. `Err`: it names none, so that no row with a handler that asks
    /// leads here.
    pub(crate) fn key(&self) -> Result<KeyName<&'a str>, ApiError> {
        self.key.ok_or_else(|| ApiError::empty(404))
    }

    /// Whether the policy allows this too, with the key that the path names: where a request is
    /// more than its row says.
    pub(crate) fn permit(&self, operation: Operation) -> Result<(), ApiError> {
        let key = self.key.map(|_| self.name);
        admit::permit(self.app, self.peer, operation, key, self.token)
            .map_err(|refusal| self.dialect.refuse(refusal))
    }
}
