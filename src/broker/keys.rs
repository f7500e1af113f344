//! Access keys that can change under requests that take long.
//!
//! An upload of a large file goes on for minutes, and belongs to one operator from its first request to its last; its keys
//! may be out of use by then. So an operator does not own them: it asks for them with each request that it signs, and they
//! are replaced in its hands once the store has let the new ones in.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use opendal::services::S3Config;
use opendal::{Configurator, Operator, Result};
use reqsign_aws_v4::Credential;
use reqsign_core::time::Timestamp;
use reqsign_core::{Context, ProvideCredential, ProvideCredentialChain};

use super::url::Backend;

/// How long a signer may think that keys are good: long enough for one request (it demands 20 s of them), too short to be
/// kept for the next (it keeps what is good for 120 s).
const GOOD_FOR: Duration = Duration::from_secs(60);

/// Keys of a store, shared by all operators of it that were built one after the other.
#[derive(Clone)]
pub(super) struct Keys(Arc<RwLock<Credential>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// The keys that `backend` itself names. `None`: it names none, or they only serve to get others.
    pub fn of(backend: &Backend) -> Option<Keys> {
        let get = |key: &str| backend.config.get(key).cloned();
        if backend.service.scheme != "s3"
            || get("role_arn").is_some()
            || get("skip_signature").as_deref() == Some("true")
        {
            return None;
        }
        Some(Keys(Arc::new(RwLock::new(Credential {
            access_key_id: get("access_key_id")?,
            secret_access_key: get("secret_access_key")?,
            session_token: get("session_token"),
            expires_in: None,
        }))))
    }

    fn get(&self) -> Credential {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on these are as `others`.
    pub fn follow(&self, others: &Keys) {
        let new = others.get();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// An operator that signs with them. `config` is the service's.
    ///
    /// # Errors
    /// OpenDAL's.
    pub fn operator(&self, config: impl Iterator<Item = (String, String)>) -> Result<Operator> {
        let builder = S3Config::from_iter(config)?.into_builder();
        Operator::new(builder.credential_provider_chain(ProvideCredentialChain::new().push(self.clone())))
    }
}

impl ProvideCredential for Keys {
    type Credential = Credential;

    async fn provide_credential(&self, _: &Context) -> reqsign_core::Result<Option<Credential>> {
        Ok(Some(Credential { expires_in: Some(Timestamp::now() + GOOD_FOR), ..self.get() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(more: &str) -> Backend {
        Backend::parse(&format!("s3://b?region=r{more}")).unwrap()
    }

    fn keys(access: &str) -> Keys {
        Keys::of(&backend(&format!("&access_key_id={access}&secret_access_key=s"))).unwrap()
    }

    #[test]
    fn keys_are_asked_for_with_each_request_and_can_be_others_then() {
        let (old, new) = (keys("old"), keys("new"));
        let in_use = old.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let provided = || runtime.block_on(in_use.provide_credential(&Context::new())).unwrap().unwrap();
        assert_eq!(provided().access_key_id, "old");
        old.follow(&new);
        assert_eq!(provided().access_key_id, "new");
        use reqsign_core::SigningCredential;
        assert!(!provided().is_valid(), "no signer keeps them");
        assert!(provided().is_valid_at(Timestamp::now() + Duration::from_secs(30)), "they do for a request");
    }

    #[test]
    fn keys_that_others_come_of_are_left_to_opendal() {
        assert!(Keys::of(&backend("")).is_none());
        for more in ["&role_arn=a", "&skip_signature=true"] {
            let both = format!("&access_key_id=k&secret_access_key=s{more}");
            assert!(Keys::of(&backend(&both)).is_none(), "{more}");
        }
        assert_eq!(format!("{:?}", keys("secret")), "Keys");
    }
}
