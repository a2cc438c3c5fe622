//! As much of a kubelet as forwards ports: what the API server asks of the real one, answered for agents that are processes of this machine.
//!
//! The real one is asked in `tests/e2e`. This one shows what becomes of a transfer when a forwarded port breaks.

use std::{net::SocketAddr, path::Path, sync::Arc};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::whole::{door::Door, site::Site};

/// What follows a key, RFC 6455.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

/// A kubelet for one node.
pub struct Kubelet {
    _serves: AbortOnDropHandle<()>,
}

impl Kubelet {
    /// Has the agent behind `door` found as a pod of `node`, with the Service in front of it. A forwarded port breaks after `cut` bytes that
    /// went to the agent.
    pub async fn of(site: &Site<'_>, node: &str, door: &Door<'_, '_>, cut: Option<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(Arc::new(tls(site.lab.plane.scope().dir())));
        let serves = AbortOnDropHandle::new(tokio::spawn(serve(listener, acceptor, door.address, cut)));
        announce(site, node, port, door.address.port()).await;
        Self { _serves: serves }
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, agent: SocketAddr, cut: Option<u64>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            upgrade(&mut stream).await;
            let agent_stream = TcpStream::connect(agent).await.unwrap();
            forward(stream, agent_stream, agent.port(), cut).await;
        });
    }
}

/// A certificate that the API server believes: its own, which is for this address too.
fn tls(folder: &Path) -> ServerConfig {
    let certificate = CertificateDer::from_pem_file(folder.join("apiserver.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("apiserver.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap()
}

/// What an administrator's tools would have made: where the kubelet is, the agent's pod, the Service.
async fn announce(site: &Site<'_>, node: &str, kubelet: u16, agent: u16) {
    let (client, namespace) = (&site.lab.client, &site.lab.namespace);
    let merge = PatchParams::default();
    let status = json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": kubelet } },
    } });
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.patch_status(node, &merge, &Patch::Merge(status)).await.unwrap();
    let labels = json!({ "app.kubernetes.io/name": "vitrine-agent" });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "vitrine-agent-x", "namespace": namespace, "labels": labels },
        "spec": {
            "nodeName": node, "containers": [{
                "name": "agent", "image": "vitrine", "ports": [{ "name": "data", "containerPort": agent }],
            }],
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "vitrine-data", "namespace": namespace },
        "spec": { "selector": labels, "ports": [{ "name": "https", "port": 443, "targetPort": "data" }] },
    });
    site.lab.plane.apply(&format!("{pod}\n---\n{service}")).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let ready = json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
    pods.patch_status("vitrine-agent-x", &merge, &Patch::Merge(ready)).await.unwrap();
}

/// Answers the request to go over to WebSocket.
async fn upgrade(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.to_lowercase().contains("/portforward/"), "{head}");
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let key = lines.clone().find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).unwrap().1;
    let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()));
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
}

/// Carries what is on channel 0 to the agent, and what it says back. Both channels begin with the port.
async fn forward(stream: impl AsyncRead + AsyncWrite + Send + 'static, agent: TcpStream, port: u16, cut: Option<u64>) {
    let (mut from, mut to) = tokio::io::split(stream);
    let (mut from_agent, mut to_agent) = agent.into_split();
    for channel in [0, 1] {
        send(&mut to, &[&[channel], &port.to_le_bytes()[..]].concat()).await.unwrap();
    }
    let up = async {
        let mut carried = 0;
        while let Some(frame) = receive(&mut from).await
            && cut.is_none_or(|cut| carried < cut)
        {
            carried += frame.len() as u64;
            if to_agent.write_all(&frame).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut piece = vec![0; 32 << 10];
        while let Ok(read @ 1..) = from_agent.read(&mut piece).await {
            if send(&mut to, &[&[0], &piece[..read]].concat()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(&[0x80 | BINARY]).await?;
    match bytes.len() {
        short @ 0..126 => to.write_u8(u8::try_from(short).unwrap()).await?,
        long => {
            to.write_u8(126).await?;
            to.write_u16(u16::try_from(long).unwrap()).await?;
        }
    }
    to.write_all(bytes).await?;
    to.flush().await
}

/// What the next frame has for channel 0; nothing at the end.
async fn receive(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    loop {
        let kind = from.read_u8().await.ok()? & 0x0f;
        let length = match from.read_u8().await.ok()? & 0x7f {
            126 => u64::from(from.read_u16().await.ok()?),
            127 => from.read_u64().await.ok()?,
            short => u64::from(short),
        };
        let mut mask = [0; 4];
        from.read_exact(&mut mask).await.ok()?;
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        from.read_exact(&mut bytes).await.ok()?;
        bytes.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        match kind {
            CLOSE => return None,
            BINARY if bytes.first() == Some(&0) => return Some(bytes.split_off(1)),
            _ => {}
        }
    }
}
