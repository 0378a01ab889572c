//! The socket that clients come to: handed over by the service manager, or bound here. Ports below
//! 1024 need root, so this comes first.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::ServeError;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Bound; nobody can connect to one of our own before [`BoundListener::listen`].
pub(super) struct BoundListener {
    socket: Socket,
    inherited: bool,
}

impl BoundListener {
    /// The one that the service manager hands over (`LISTEN_FDS`, see `sd_listen_fds(3)`), or else
    /// one bound to `address`.
    pub(super) fn new(address: SocketAddr) -> Result<Self, ServeError> {
        if let Some(listener) = inherited()? {
            return Ok(Self {
                socket: listener.into(),
                inherited: true,
            });
        }
        bind(address)
            .map(|socket| Self {
                socket,
                inherited: false,
            })
            .map_err(|source| ServeError::Listen { address, source })
    }

    /// Lets clients in. Call it inside the runtime.
    pub(super) fn listen(self, configured: SocketAddr) -> io::Result<TcpListener> {
        if !self.inherited {
            self.socket.listen(BACKLOG)?;
        }
        self.socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(self.socket.into())?;
        let address = listener.local_addr()?;
        if self.inherited && address != configured {
            tracing::info!(%address, %configured, "the service manager's socket is used, not `listen` of the configuration");
        }
        Ok(listener)
    }
}

fn inherited() -> Result<Option<StdListener>, ServeError> {
    let mut given = ListenFd::from_env();
    match given.len() {
        0 => Ok(None),
        1 => given
            .take_tcp_listener(0)
            .map_err(|source| ServeError::System {
                what: "the service manager handed over something that is no TCP listener",
                source,
            }),
        _ => Err(ServeError::System {
            what: "the service manager handed over more than one socket: give the socket unit one ListenStream",
            source: io::ErrorKind::InvalidInput.into(),
        }),
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of the server before it to be forgotten.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
