//! Who a person is to the agents: a token that the API server knows.
//!
//! A kubeconfig has one, or a program that gets one. Whoever proves who they are by a certificate has none, and lends one: a service account
//! for this one transfer, made by the person's own rights and gone with it, that may do this one thing with this one Image. See
//! `docs/decisions/0027-a-person-without-a-token-lends-one.md`.

use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, header};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        core::v1::ServiceAccount,
        rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{DeleteParams, PostParams},
    client::{Body, ConfigExt as _},
    core::ObjectMeta,
};
use tower::{BoxError, Layer as _, ServiceExt as _, service_fn, util::BoxCloneService};
use vitrine_engine::error::{Error, Kind, Result};

use super::link::value;
use crate::{
    api::{GROUP, Image},
    client::{
        FIELD_MANAGER,
        connect::{Choice, Cluster},
        explain::explain,
    },
};

/// What lent accounts are called, and labelled.
const LENT: &str = "vitrine-transfer";
const LABEL_LENT: &str = "vitrine.dev/transfer";
/// How long a token holds that is asked for, and after how long the next one is.
const TOKEN_SECONDS: i64 = 3600;
const TOKEN_AGE: Duration = Duration::from_mins(30);
/// How long the API server may take to know of rights that it was just told of.
const RIGHTS_WITHIN: Duration = Duration::from_secs(15);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(100);

/// A way to a token.
pub struct Credential(Way);

enum Way {
    /// The kubeconfig's, got as it says.
    Own(BoxCloneService<Request<Body>, Response<()>, BoxError>),
    /// A service account's.
    Account(Box<Account>),
}

struct Account {
    cluster: Cluster,
    name: String,
    lent: bool,
    token: Option<(HeaderValue, Instant)>,
}

impl Credential {
    /// A token with which `right` (subresource and verb) may be had of `image`; of the service account `account`, if one is named.
    ///
    /// # Errors
    /// If there is no token, and none can be lent; the message says what else there is.
    pub async fn find(
        cluster: &Cluster,
        account: Option<&str>,
        image: &Image,
        right: (&'static str, &'static str),
    ) -> Result<Self> {
        if let Some(name) = account {
            let account = Account { cluster: cluster.clone(), name: name.to_owned(), lent: false, token: None };
            return Ok(Self(Way::Account(Box::new(account))));
        }
        if let Some(own) = own(cluster).await? {
            return Ok(Self(Way::Own(own)));
        }
        let mut account = lend(cluster, image, right).await?;
        if let Err(error) = account.settle(image, right).await {
            account.give_back().await;
            return Err(error);
        }
        Ok(Self(Way::Account(Box::new(account))))
    }

    /// The value of `Authorization`.
    ///
    /// # Errors
    /// If there is no token any more.
    pub async fn header(&mut self) -> Result<HeaderValue> {
        match &mut self.0 {
            Way::Own(own) => {
                let got = own.clone().oneshot(Request::new(Body::empty())).await;
                let got =
                    got.map_err(|e| Error::with_source(Kind::Denied, "the kubeconfig's way to a token failed", e))?;
                let none = || Error::new(Kind::Denied, "the kubeconfig's way to a token gives none any more");
                got.headers().get(header::AUTHORIZATION).cloned().ok_or_else(none)
            }
            Way::Account(account) => account.header().await,
        }
    }

    /// Whether it was lent for this transfer.
    pub fn is_lent(&self) -> bool {
        matches!(&self.0, Way::Account(account) if account.lent)
    }

    /// Gives back what was lent.
    pub async fn close(self) {
        if let Way::Account(account) = self.0
            && account.lent
        {
            account.give_back().await;
        }
    }
}

/// The kubeconfig's own way to a token, as `kube` goes it; none if it has another proof. A person who acts as somebody else has no token of
/// theirs.
async fn own(cluster: &Cluster) -> Result<Option<BoxCloneService<Request<Body>, Response<()>, BoxError>>> {
    if cluster.config.auth_info.impersonate.is_some() {
        return Ok(None);
    }
    let config = cluster.config.clone();
    // It may run a program, and wait for it.
    let layer = tokio::task::spawn_blocking(move || config.auth_layer()).await;
    let layer = layer.map_err(|e| Error::with_source(Kind::Internal, "asking the kubeconfig for a token", e))?;
    let Some(layer) = layer.map_err(|error| explain(&error))? else { return Ok(None) };
    let keep = |request: Request<Body>| async move {
        let mut response = Response::new(());
        *response.headers_mut() = request.headers().clone();
        Ok::<_, BoxError>(response)
    };
    let own = BoxCloneService::new(layer.layer(service_fn(keep)).map_err(BoxError::from));
    let probe = own.clone().oneshot(Request::new(Body::empty())).await;
    let probe = probe.map_err(|e| Error::with_source(Kind::Denied, "the kubeconfig's way to a token failed", e))?;
    let bearer = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.starts_with("Bearer "));
    Ok(probe.headers().get(header::AUTHORIZATION).is_some_and(bearer).then_some(own))
}

/// Makes a service account that may do one thing with one Image.
async fn lend(cluster: &Cluster, image: &Image, right: (&str, &str)) -> Result<Account> {
    let name = format!("{LENT}-{:08x}", rand::random::<u32>());
    let account = Account { cluster: cluster.clone(), name: name.clone(), lent: true, token: None };
    let metadata = || ObjectMeta {
        name: Some(name.clone()),
        labels: Some([(LABEL_LENT.to_owned(), "true".to_owned())].into()),
        // Should this program be killed, what it made goes with the Image.
        owner_references: Some(vec![OwnerReference {
            api_version: Image::api_version(&()).into_owned(),
            kind: Image::kind(&()).into_owned(),
            name: image.name_any(),
            uid: image.uid().unwrap_or_default(),
            ..OwnerReference::default()
        }]),
        ..ObjectMeta::default()
    };
    let rule = PolicyRule {
        api_groups: Some(vec![GROUP.to_owned()]),
        resources: Some(vec![format!("images/{}", right.0)]),
        resource_names: Some(vec![image.name_any()]),
        verbs: vec![right.1.to_owned()],
        ..PolicyRule::default()
    };
    let role = Role { metadata: metadata(), rules: Some(vec![rule]) };
    let binding = RoleBinding {
        metadata: metadata(),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: name.clone(),
            namespace: Some(cluster.namespace.clone()),
            ..Subject::default()
        }]),
    };
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let made = async {
        let user = ServiceAccount { metadata: metadata(), ..ServiceAccount::default() };
        account.api::<ServiceAccount>().create(&params, &user).await?;
        account.api::<Role>().create(&params, &role).await?;
        account.api::<RoleBinding>().create(&params, &binding).await
    };
    match made.await {
        Ok(_) => Ok(account),
        Err(error) => {
            account.give_back().await;
            Err(cannot_lend(cluster, &explain(&error), right))
        }
    }
}

/// What else there is.
fn cannot_lend(cluster: &Cluster, why: &Error, (subresource, verb): (&str, &str)) -> Error {
    let namespace = &cluster.namespace;
    let role = if subresource == "upload" { "vitrine-edit" } else { "vitrine-view" };
    Error::new(
        Kind::Denied,
        format!(
            "the agents know people by tokens, your kubeconfig has none, and no service account can be made for this transfer ({why}). \
             Name one that may {verb} images/{subresource} in namespace {namespace} with --service-account NAME; whoever administers the \
             namespace makes it so: kubectl create serviceaccount NAME --namespace {namespace} && kubectl create rolebinding NAME \
             --clusterrole {role} --serviceaccount {namespace}:NAME --namespace {namespace}. Or give a token with --token"
        ),
    )
}

impl Account {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace)
    }

    async fn header(&mut self) -> Result<HeaderValue> {
        if let Some((token, since)) = &self.token
            && since.elapsed() < TOKEN_AGE
        {
            return Ok(token.clone());
        }
        let token = bearer(&self.request().await?)?;
        self.token = Some((token.clone(), Instant::now()));
        Ok(token)
    }

    async fn request(&self) -> Result<String> {
        let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() };
        let wish = TokenRequest { spec, ..TokenRequest::default() };
        let made = self.api::<ServiceAccount>().create_token_request(&self.name, &PostParams::default(), &wish).await;
        let doing =
            || format!("getting a token of service account {} in namespace {}", self.name, self.cluster.namespace);
        let made = made.map_err(|error| explain(&error).context(doing()))?;
        let none = || Error::new(Kind::Unavailable, format!("{}: the API server gave none", doing()));
        made.status.map(|status| status.token).ok_or_else(none)
    }

    /// Waits until the API server knows what the account may: agents remember for some seconds what they were told.
    async fn settle(&mut self, image: &Image, (subresource, verb): (&str, &str)) -> Result<()> {
        let token = self.request().await?;
        self.token = Some((bearer(&token)?, Instant::now()));
        let choice = Choice { token: Some(token), ..Choice::default() };
        let own = choice.with(self.cluster.config.clone(), &self.cluster.namespace)?;
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some("images".to_owned()),
                subresource: Some(subresource.to_owned()),
                verb: Some(verb.to_owned()),
                namespace: Some(self.cluster.namespace.clone()),
                name: Some(image.name_any()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let question = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let (reviews, began): (Api<SelfSubjectAccessReview>, _) = (Api::all(own.client), Instant::now());
        while began.elapsed() < RIGHTS_WITHIN {
            let review = reviews.create(&PostParams::default(), &question).await;
            if review.is_ok_and(|review| review.status.is_some_and(|status| status.allowed)) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        let message = format!("the API server does not take note of what service account {} may", self.name);
        Err(Error::new(Kind::Unavailable, message))
    }

    /// Removes what was made, its token with it. What cannot be removed is of no use to anybody for long, and goes with the Image.
    async fn give_back(&self) {
        let params = DeleteParams::background();
        let account = self.api::<ServiceAccount>().delete(&self.name, &params).await.map(drop);
        let binding = self.api::<RoleBinding>().delete(&self.name, &params).await.map(drop);
        let role = self.api::<Role>().delete(&self.name, &params).await.map(drop);
        let gone = |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_forbidden());
        if [account, binding, role].into_iter().any(|done| done.is_err_and(|error| !gone(&error))) {
            let namespace = &self.cluster.namespace;
            eprintln!(
                "service account {0} is left in namespace {namespace}, and goes with the Image; to remove it now: kubectl delete \
                 serviceaccount,role,rolebinding {0} --namespace {namespace}",
                self.name
            );
        }
    }
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let mut value = value(&format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}
