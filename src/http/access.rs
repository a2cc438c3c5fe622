//! Who asks, and whether they may: asked of Kubernetes, with nothing but the caller's token (TokenReview, SubjectAccessReview).

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Semaphore;

use super::{answer::Refusal, memo::Memo};
use crate::api::GROUP;

/// How long an answer is believed: rights that are taken away, and tokens that expire, are noticed this much late.
const BELIEF: Duration = Duration::from_secs(5);
/// Answers kept at most: more than there are callers at once.
const MOST: usize = 4096;
/// Questions to the API server at once, so that tokens made up by somebody do not drown it. Others wait.
const QUESTIONS: usize = 32;
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(12);
/// The longest token: what the API server takes as a header.
const MAX_TOKEN: usize = 64 << 10;

type TokenHash = [u8; 32];

/// What somebody wants to do with an Image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wish {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `data` or `upload`.
    pub subresource: &'static str,
    /// `get` or `update`.
    pub verb: &'static str,
}

/// Somebody who proved who they are.
#[derive(Clone, Debug)]
pub struct Caller {
    token: TokenHash,
    user: Arc<UserInfo>,
}

/// Asks, and remembers for a moment.
pub struct Access {
    client: Client,
    callers: Memo<TokenHash, Arc<UserInfo>>,
    verdicts: Memo<(TokenHash, Wish), bool>,
    questions: Semaphore,
}

impl Access {
    /// Asks by `client`.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            callers: Memo::new(BELIEF, MOST),
            verdicts: Memo::new(BELIEF, MOST),
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// Who asks.
    ///
    /// # Errors
    /// 401 if nobody that Kubernetes knows, 503 if it cannot be asked.
    pub async fn who(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let token = token(headers)?;
        let hash = *blake3::hash(token.as_bytes()).as_bytes();
        if let Some(user) = self.callers.get(&hash) {
            return Ok(Caller { token: hash, user });
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: None },
            ..TokenReview::default()
        };
        let status = self.ask(Api::all(self.client.clone()), &review).await?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).ok_or_else(|| {
            Refusal::unauthorized(
                "the token is not valid, or not any more: get a new one, as with `kubectl create token`",
            )
        })?;
        let user = Arc::new(user);
        self.callers.put(hash, user.clone());
        Ok(Caller { token: hash, user })
    }

    /// Whether the caller may.
    ///
    /// # Errors
    /// 403 if not, whether or not there is such an Image; 503 if Kubernetes cannot be asked.
    pub async fn check(&self, caller: &Caller, wish: Wish) -> Result<(), Refusal> {
        let question = (caller.token, wish);
        let known = self.verdicts.get(&question);
        let allowed = if let Some(allowed) = known {
            allowed
        } else {
            let review = review(&caller.user, &question.1);
            let status = self.ask(Api::all(self.client.clone()), &review).await?.status;
            let allowed = status.is_some_and(|status| status.allowed);
            self.verdicts.put(question.clone(), allowed);
            allowed
        };
        let Wish { namespace, name, subresource, verb } = question.1;
        if allowed {
            return Ok(());
        }
        let user = caller.user.username.as_deref().unwrap_or_default();
        Err(Refusal::forbidden(format!(
            "{user} may not {verb} images/{subresource} {name} in namespace {namespace}: the roles view and edit of that namespace allow \
             reading, edit allows uploading"
        )))
    }

    async fn ask<K>(&self, api: Api<K>, review: &K) -> Result<K, Refusal>
    where
        K: Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let ask = async {
            let _turn = self.questions.acquire().await;
            api.create(&PostParams::default(), review).await
        };
        match tokio::time::timeout(DEADLINE, ask).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the API server does not say who may do what");
                Err(Refusal::unavailable(
                    "the API server cannot be asked who you are and what you may do; try again later",
                ))
            }
            Err(_) => Err(Refusal::unavailable("the API server did not say in time who you are and what you may do")),
        }
    }
}

/// The bearer token.
fn token(headers: &HeaderMap) -> Result<&str, Refusal> {
    let missing = || Refusal::unauthorized("send a token of Kubernetes: `Authorization: Bearer …`");
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    let token = token.trim();
    let fits = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN;
    fits.then_some(token).ok_or_else(missing)
}

fn review(user: &UserInfo, wish: &Wish) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username.clone(),
            groups: user.groups.clone(),
            uid: user.uid.clone(),
            extra: user.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some("images".to_owned()),
                subresource: Some(wish.subresource.to_owned()),
                verb: Some(wish.verb.to_owned()),
                namespace: Some(wish.namespace.clone()),
                name: Some(wish.name.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_bearers() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            token(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer abc").unwrap(), "abc");
        assert_eq!(of("bearer  abc ").unwrap(), "abc");
        let long = format!("Bearer {}", "x".repeat(MAX_TOKEN + 1));
        for wrong in ["Basic abc", "Bearer", "Bearer ", "abc", &long] {
            assert_eq!(of(wrong).unwrap_err().code.as_u16(), 401, "{wrong:.20}");
        }
        assert_eq!(token(&HeaderMap::new()).unwrap_err().code.as_u16(), 401);
    }
}
