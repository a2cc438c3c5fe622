//! The server as a whole: what is where, and who is let through to it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::any,
};
use http::{HeaderValue, Method, Request, header};
use kube::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use vitrine_engine::source::Uploads;

use super::{
    Config, Shelf,
    access::{Access, Wish},
    answer::{Answer, Refusal},
    certificate::{self, Identity},
    connection::Door,
    download::{self, Downloads},
    idle::Work,
    linger::linger,
    peer::Peers,
    tenant::Tenants,
    upload::{self, Intake},
};
use crate::api::{
    DataEndpoint,
    data::{DATA, ROUTE, UPLOAD},
};

/// What may be done there.
const METHODS: &str = "GET, HEAD, PUT, POST, PATCH, DELETE, OPTIONS";

/// What requests are answered with.
struct Desk {
    access: Access,
    tenants: Tenants,
    downloads: Arc<Downloads>,
    intake: Intake,
    max_size: u64,
}

/// Listens at `address`. Where there is no IPv6, all addresses are those of IPv4.
///
/// # Errors
/// What the system says.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Serves images' data from `listener` until `stop`.
///
/// # Errors
/// What makes it impossible to serve at all.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    client: Client,
    (shelf, uploads): (Arc<dyn Shelf>, Arc<Uploads>),
    stop: CancellationToken,
) -> io::Result<()> {
    let identity = Arc::new(Identity::new().map_err(io::Error::other)?);
    let local = listener.local_addr()?;
    let address = config.host.map_or(local, |host| SocketAddr::new(host, local.port()));
    let endpoint = DataEndpoint {
        address: address.to_string(),
        namespace: config.namespace.clone(),
        public_key: identity.public_key(),
    };
    tracing::info!(listen = %local, %address, "serves images' data");
    let keeping = certificate::keep(client.clone(), config.node.clone(), identity.clone(), endpoint, stop.clone());
    let peers = Peers::new(&client, &config.node, &config.namespace, config.patience.saturating_mul(2));
    let peers = Arc::new(peers);
    let desk = Desk {
        access: Access::new(client.clone()),
        tenants: Tenants::new(config.requests_per_tenant, config.bytes_per_tenant),
        downloads: Arc::new(Downloads::new(config.clone(), client.clone(), shelf, peers.clone(), stop.clone())),
        intake: Intake::new(config.clone(), client, uploads, peers),
        max_size: config.max_size,
    };
    let door = Door::new(identity, router(desk), config.idle, stop).map_err(io::Error::other)?;
    tokio::join!(keeping, door.keep_open(listener, config.connections));
    Ok(())
}

fn router(desk: Desk) -> Router {
    let nothing = || async { Refusal::not_found(format!("there is nothing here; images' data is at {ROUTE}")) };
    Router::new().route(ROUTE, any(data)).fallback(nothing).with_state(Arc::new(desk))
}

async fn data(
    State(desk): State<Arc<Desk>>,
    Path((namespace, name)): Path<(String, String)>,
    Extension(work): Extension<Work>,
    request: Request<Body>,
) -> Response {
    let is_head = request.method() == Method::HEAD;
    let is_upload = upload::is_upload(request.method(), request.headers());
    let request = if is_upload { request.map(linger) } else { request };
    let answer = answer(&desk, &namespace, &name, &work, request).await;
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    if is_upload {
        upload::mark(&mut response);
    }
    if is_head {
        *response.body_mut() = Body::empty();
    }
    response
}

async fn answer(desk: &Desk, namespace: &str, name: &str, work: &Work, request: Request<Body>) -> Answer {
    let uploads = upload::is_upload(request.method(), request.headers());
    if *request.method() == Method::OPTIONS {
        return Ok(upload::capabilities(desk.max_size));
    }
    if !uploads && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = Refusal::method(format!("this path takes {METHODS}")).into_response();
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
        return Ok(refused);
    }
    let asking = work.begin();
    let caller = desk.access.who(request.headers()).await?;
    let (subresource, verb) = if uploads { UPLOAD } else { DATA };
    let wish = Wish { namespace: namespace.to_owned(), name: name.to_owned(), subresource, verb };
    desk.access.check(&caller, wish).await?;
    drop(asking);
    let place = desk.tenants.enter(namespace)?;
    if uploads {
        return desk.intake.answer((namespace, name), request, work, place).await;
    }
    let path = request.uri().path_and_query().map_or(request.uri().path(), |path| path.as_str());
    let download = download::Request { namespace, name, method: request.method(), path, headers: request.headers() };
    desk.downloads.answer(&download, work, place).await
}
