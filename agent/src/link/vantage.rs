//! Looks at this host from outside: by a connection to the controller that is made for one look, since one that is
//! established goes on where new ones are dropped. What the host can see by itself is looked at here.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use postern_proto::guard::{Finding, Found, Predicate};
use postern_proto::v1;
use postern_proto::v1::link_client::LinkClient;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use super::http2::{self, KeepAlive, chain};
use super::identity::IdentityStore;
use super::time::TrustedTime;
use super::{AgentOptions, enrol};
use crate::guard::{Unseen, Vantage};

/// For one name or one port.
const PROBE: Duration = Duration::from_secs(5);
/// For the controller's answer: it looks at every port with a deadline of its own.
const ANSWER: Duration = Duration::from_secs(20);
/// The largest answer, bytes.
const MAX_ANSWER: usize = 1 << 20;

/// The controller, asked over connections of their own.
pub(super) struct LinkVantage(AgentOptions);

impl std::fmt::Debug for LinkVantage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkVantage")
    }
}

fn unseen(error: &dyn std::error::Error) -> Unseen {
    Unseen::now(chain(error))
}

impl LinkVantage {
    pub(super) fn new(options: &AgentOptions) -> Self {
        // A route that ends with the bootstrap's SSH connection proves nothing about the time after it.
        let config = postern_proto::host::AgentConfig { temporary_route: None, ..options.config.clone() };
        Self(AgentOptions { config, ..options.clone() })
    }

    async fn ask(&self, predicates: Vec<v1::GuardPredicate>) -> Result<Vec<Found>, Unseen> {
        let options = &self.0;
        if options.config.controllers.is_empty() {
            return Err(Unseen::now(
                "this host reaches it only through the SSH connection of `postern up`, which is not enough to \
                 change what could cut the host off",
            ));
        }
        // Read anew: it may have been renewed since the last look.
        let identity = IdentityStore::new(&options.state_dir).load().map_err(|error| unseen(&error))?;
        let time = TrustedTime::new(options.clock.clone(), identity.floor_s());
        let dialer = enrol::dialer(&options.config, &options.proxy_env, &options.names, options.dial);
        let dialer = dialer.map_err(|error| unseen(&error))?;
        let tls = super::tls::client_config(identity.server_ca_pem(), Some(&identity), time);
        let connection = dialer.dial(tls.map_err(|error| unseen(&error))?).await;
        let connection = connection.map_err(|error| unseen(&error))?;
        let (http2, _driving) = http2::open(connection, KeepAlive::default()).await.map_err(Unseen::now)?;
        let mut client = LinkClient::with_origin(http2, http2::origin(&options.config.server_name))
            .max_decoding_message_size(MAX_ANSWER);
        let nonce = rand::random();
        let answer = timeout(ANSWER, client.vantage(v1::VantageRequest { nonce, predicates })).await;
        let answer = answer.map_err(|_| Unseen::now("the controller did not answer in time"))?;
        let answer = answer.map_err(|status| {
            let said = super::wire::readable(status.message());
            match status.code() {
                Code::InvalidArgument | Code::PermissionDenied => {
                    Unseen::for_good(format!("it refused: {said}"))
                }
                Code::Unimplemented => Unseen::for_good("the controller is too old to look: update it"),
                _ => Unseen::now(said),
            }
        })?;
        answer.into_inner().findings(nonce).map_err(|error| unseen(&error))
    }

    /// What the host sees by itself.
    async fn here(&self, predicate: &Predicate) -> Finding {
        let names = &self.0.names;
        match predicate {
            Predicate::Dns { name } => match timeout(PROBE, names.resolve(name)).await {
                Ok(Ok(_)) => Finding::Holds,
                Ok(Err(error)) => Finding::fails(error.to_string()),
                Err(_) => Finding::fails("no answer in time"),
            },
            Predicate::Egress { host, port } => {
                let connect = async {
                    let addresses = match host.parse::<IpAddr>() {
                        Ok(address) => vec![address],
                        Err(_) => names.resolve(host).await.map_err(|error| error.to_string())?,
                    };
                    let mut last = "it has no address".to_owned();
                    for address in addresses {
                        match TcpStream::connect((address, *port)).await {
                            Ok(_) => return Ok(()),
                            Err(error) => last = error.to_string(),
                        }
                    }
                    Err(last)
                };
                match timeout(PROBE, connect).await {
                    Ok(Ok(())) => Finding::Holds,
                    Ok(Err(why)) => Finding::fails(why),
                    Err(_) => Finding::fails("no answer in time"),
                }
            }
            Predicate::Inbound { .. }
            | Predicate::Login { .. }
            | Predicate::NoPassword { .. }
            | Predicate::Closed { .. } => Finding::unobservable("the controller has to look"),
        }
    }
}

#[async_trait]
impl Vantage for LinkVantage {
    async fn look(&self, predicates: &[Predicate]) -> Result<Vec<Found>, Unseen> {
        let mut places = Vec::new();
        let mut asked = Vec::new();
        for (place, predicate) in predicates.iter().enumerate() {
            if let Some(message) = v1::GuardPredicate::of(predicate) {
                places.push(place);
                asked.push(message);
            }
        }
        let own = predicates.iter().enumerate().filter(|(_, predicate)| !predicate.is_from_outside());
        let own = join_all(own.map(|(place, predicate)| async move {
            Found { predicate: place, at: String::new(), finding: self.here(predicate).await }
        }));
        let (outside, mut found) = tokio::join!(self.ask(asked), own);
        for mut one in outside? {
            let Some(place) = places.get(one.predicate) else {
                return Err(Unseen::for_good("the controller answered what it was not asked"));
            };
            one.predicate = *place;
            one.at = super::wire::readable(&one.at);
            if let Finding::Fails { why } | Finding::Unobservable { why } = &mut one.finding {
                *why = super::wire::readable(why);
            }
            found.push(one);
        }
        Ok(found)
    }
}
