//! T31 and T32: every RPC × every peer, and certificates used where they do not belong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postern::daemon::authz::TABLE;
use postern_proto::v1;
use prost::Message as _;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::client::Grpc;
use tonic::transport::Channel;

use crate::support::{Agent, Rig, client_config, soon, tls_channel, turned_away, unix_channel};

/// Every RPC there is, by the descriptors that the code was generated from.
fn all_rpcs() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
    let mut all = BTreeSet::new();
    for file in set.file {
        for service in &file.service {
            for method in &service.method {
                all.insert(format!("{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    all
}

/// Calls an RPC with an empty message. Streams end after their first answer.
async fn call(channel: &Channel, rpc: &str) -> Code {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::try_from(format!("/{rpc}")).unwrap();
    let codec = tonic_prost::ProstCodec::<v1::InfoRequest, v1::InfoRequest>::default();
    let request = tonic::Request::new(tokio_stream::once(v1::InfoRequest {}));
    match soon(rpc, grpc.streaming(request, path, codec)).await {
        Err(status) => status.code(),
        Ok(answer) => match soon(rpc, answer.into_inner().message()).await {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_31_every_rpc_by_every_peer() {
    let rows: BTreeSet<_> = TABLE.iter().map(|(rpc, _)| (*rpc).to_owned()).collect();
    assert_eq!(rows, all_rpcs(), "each RPC has a row and each row an RPC");
    assert_eq!(rows.len(), TABLE.len(), "no RPC has two");

    let rig = Rig::start().await;
    let agent = rig.agent("one").await;
    let address = rig.daemon().local_addr();
    let peers = [
        ("nobody", tls_channel(address, &agent.root_pem, None).await.unwrap()),
        ("agent", agent.channel(&rig).await.unwrap()),
        ("operator", unix_channel(rig.daemon().socket()).await),
    ];
    for (rpc, access) in TABLE {
        for (peer, channel) in &peers {
            let code = call(channel, rpc).await;
            let refused =
                matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented);
            let allowed = match *access {
                "anyone" => *peer != "operator",
                "agent" => *peer == "agent",
                "operator" => *peer == "operator",
                other => panic!("{other}"),
            };
            assert_eq!(!refused, allowed, "{rpc} by {peer}: {code:?}");
        }
    }
    // Nothing that is not a row is served, to anyone.
    for (peer, channel) in &peers {
        for rpc in ["postern.v1.Operator/Nothing", "postern.v1.Nothing/Info", "grpc.health.v1.Health/Check"] {
            assert_eq!(call(channel, rpc).await, Code::Unimplemented, "{rpc} by {peer}");
        }
    }
}

/// A certificate of the `agents` issuer does not make a controller.
#[tokio::test(flavor = "multi_thread")]
async fn trap_32_an_agents_certificate_is_no_controllers() {
    let rig = Rig::start().await;
    let agent = rig.agent("one").await;
    let (chain, key) = agent.identity();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        while let Ok((socket, _)) = listener.accept().await {
            let _ = acceptor.accept(socket).await;
        }
    });
    // Neither under the controller's name nor under any other.
    for name in [postern_proto::SERVER_NAME, "localhost"] {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(&agent.root_pem, None)));
        let socket = TcpStream::connect(address).await.unwrap();
        let error = connector.connect(ServerName::try_from(name).unwrap(), socket).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

/// A certificate of the `servers` issuer, or of nobody's, does not make an agent.
#[tokio::test(flavor = "multi_thread")]
async fn trap_32_a_controllers_certificate_is_no_agents() {
    let rig = Rig::start().await;
    let agent = rig.agent("one").await;
    let address = rig.daemon().local_addr();
    let key = KeyPair::generate().unwrap();
    let uri = format!("postern:host:{}", agent.host);
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];

    let ca = rig.state_dir().join("ca");
    let read = |name: &str| std::fs::read_to_string(ca.join(name)).unwrap();
    let seal = postern::seal::SealKey::read(&rig.state_dir().join("secrets.key")).unwrap().unwrap();
    let signed_by = |issuer: &str| {
        let file = format!("{issuer}.key");
        let clear = seal.open_text(&format!("ca/{file}"), &read(&file)).unwrap();
        let issuer_key = KeyPair::from_pem(&clear).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read(&format!("{issuer}.crt")), issuer_key).unwrap();
        params.signed_by(&key, &issuer).unwrap().der().clone()
    };
    use rustls::pki_types::pem::PemObject as _;
    let pem = |name: &str| rustls::pki_types::CertificateDer::from_pem_slice(read(name).as_bytes()).unwrap();
    // The same way in works for what the agents' issuer signed.
    assert!(!turned_away(address, &agent.root_pem, agent.identity()).await);
    let chains = [
        ("servers", vec![signed_by("servers"), pem("servers.crt")]),
        ("root", vec![signed_by("root")]),
        ("itself", vec![params.self_signed(&key).unwrap().der().clone()]),
    ];
    for (issuer, chain) in chains {
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let refused = turned_away(address, &agent.root_pem, (chain, secret)).await;
        assert!(refused, "signed by {issuer}");
    }
}

/// What a CSR asks for is not given.
#[tokio::test(flavor = "multi_thread")]
async fn trap_32_names_in_a_csr_are_ignored() {
    let rig = Rig::start().await;
    let victim = rig.agent("victim").await;
    let (host, token) = rig.prepare("one").await;
    let mut agent = Agent::new(&rig, &host).await;
    let mut params = CertificateParams::new(vec![postern_proto::SERVER_NAME.to_owned()]).unwrap();
    let uri = format!("postern:host:{}", victim.host);
    params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let request = v1::EnrolRequest {
        host_id: host.clone(),
        token,
        csr_der: params.serialize_request(&agent.key).unwrap().der().to_vec().into(),
        agent_version: String::new(),
    };
    agent.chain_pem =
        agent.anonymous(&rig).await.enrol(request).await.unwrap().into_inner().certificate_chain_pem;
    let _line = agent.session(&rig).await;
    assert_eq!(rig.host(&host).await.link(), v1::LinkState::Up);
    assert_eq!(rig.host(&victim.host).await.link(), v1::LinkState::Down);
    agent.host = victim.host;
    assert_eq!(agent.dial(&rig).await.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_costs_nothing() {
    let rig = Rig::with(|config| config.limits.handshake = Duration::from_millis(500)).await;
    let address = rig.daemon().local_addr();
    let mut silent = TcpStream::connect(address).await.unwrap();
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.2\r\n", &[0xff; 4096], b"\x16\x03\x01"]
    {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon("the end", socket.read_to_end(&mut rest)).await;
    }
    let mut rest = Vec::new();
    let _ = soon("the end of one that says nothing", silent.read_to_end(&mut rest)).await;

    // TLS and then garbage instead of HTTP/2.
    let agent = rig.agent("one").await;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(&agent.root_pem, None)));
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(postern_proto::SERVER_NAME).unwrap();
    let mut stream = connector.connect(name, socket).await.unwrap();
    stream.write_all(&[0xaa; 64 * 1024]).await.unwrap();
    let _ = soon("the end", stream.read_to_end(&mut rest)).await;

    // A stream that says no hello ends by itself; rubbish in it is answered, and the daemon lives on.
    assert_ne!(call(&agent.channel(&rig).await.unwrap(), "postern.v1.Link/Session").await, Code::Internal);
    let mut agent = agent;
    agent.session(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_certificate_are_few_and_short() {
    let rig = Rig::with(|config| {
        config.limits.anonymous_per_address = 2;
        config.limits.anonymous_life = Duration::from_millis(400);
    })
    .await;
    let root = rig.root_pem().await;
    let open = async || {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(&root, None)));
        let socket = TcpStream::connect(rig.daemon().local_addr()).await.unwrap();
        connector.connect(ServerName::try_from(postern_proto::SERVER_NAME).unwrap(), socket).await.unwrap()
    };
    let mut held = vec![open().await, open().await];
    for stream in &mut held {
        // The server speaks first in HTTP/2, so one byte says that it was let in.
        soon("a byte", stream.read_u8()).await.unwrap();
    }
    let mut third = open().await;
    assert!(soon("the end", third.read_u8()).await.is_err(), "one too many");
    let mut rest = Vec::new();
    let _ = soon("the end of its time", held[0].read_to_end(&mut rest)).await;
    let _ = soon("the end of its time", held[1].read_to_end(&mut rest)).await;
    assert!(soon("a byte", open().await.read_u8()).await.is_ok());
}
