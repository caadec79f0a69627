//! Secrets, as an operator sets, lists and removes them.

use postern_proto::{text, v1};
use tonic::Status;
use zeroize::{Zeroize as _, Zeroizing};

use super::{OperatorService, failed};
use crate::daemon::authz::OperatorPeer;
use crate::store::{SecretBytes, SecretRecord};

impl OperatorService {
    pub(super) async fn set(
        &self,
        peer: OperatorPeer,
        request: v1::SetSecretRequest,
    ) -> Result<v1::SetSecretResponse, Status> {
        let v1::SetSecretRequest { name, value: message } = request;
        let value = SecretBytes::new(Zeroizing::new(message.to_vec()));
        // The message's own buffer too, where nothing else shares it.
        if let Ok(mut buffer) = message.try_into_mut() {
            buffer.as_mut().zeroize();
        }
        check_name(&name)?;
        text::check_secret(value.expose())
            .map_err(|error| Status::invalid_argument(format!("the value of secret {name} {error}")))?;
        let set =
            self.0.store.set_secret(name.clone(), value, self.0.clock.now_ms()).await.map_err(failed)?;
        tracing::info!(%name, version = set.version, changed = set.changed, uid = peer.uid, "secret set");
        Ok(v1::SetSecretResponse { version: set.version })
    }

    pub(super) async fn secrets(&self) -> Result<v1::ListSecretsResponse, Status> {
        let message = |secret: SecretRecord| v1::SecretInfo {
            name: secret.name,
            version: secret.version,
            set_unix_ms: secret.set_ms,
            used_by: secret.used_by.into_iter().collect(),
        };
        let secrets = self.0.store.secrets().await.map_err(failed)?;
        Ok(v1::ListSecretsResponse { secrets: secrets.into_iter().map(message).collect() })
    }

    pub(super) async fn remove(
        &self,
        peer: OperatorPeer,
        request: v1::RemoveSecretRequest,
    ) -> Result<v1::RemoveSecretResponse, Status> {
        check_name(&request.name)?;
        self.0.store.remove_secret(request.name.clone()).await.map_err(failed)?;
        tracing::info!(name = %request.name, uid = peer.uid, "secret removed");
        Ok(v1::RemoveSecretResponse {})
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    if text::is_secret_name(name) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "secret {name:?}: want up to 128 letters, digits, '-', '_', '.' or '/', beginning with a letter or digit"
    )))
}
