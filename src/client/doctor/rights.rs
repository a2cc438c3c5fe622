//! What the person may do: less than everything is no fault, and good to know.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

use super::{Case, Finding};
use crate::{
    api::{GROUP, data},
    client::explain::explain,
};

/// A thing that people do, and the rights it takes: verb, group, resource, and whether in Vitrine's namespace.
const THINGS: [(&str, &[Right]); 4] = [
    ("look at Images", &[Right::of_images("list", ""), Right::of_images("get", "")]),
    (
        "make and change Images",
        &[Right::of_images("create", ""), Right::of_images("patch", ""), Right::of_images("delete", "")],
    ),
    (
        "upload and download",
        &[Right::of_images(data::UPLOAD.1, data::UPLOAD.0), Right::of_images(data::DATA.1, data::DATA.0)],
    ),
    (
        "forward a port to an agent",
        &[
            Right { verb: "get", group: "", resource: "pods", subresource: "portforward", here: false },
            Right { verb: "create", group: "", resource: "pods", subresource: "portforward", here: false },
            Right { verb: "list", group: "", resource: "pods", subresource: "", here: false },
        ],
    ),
];

struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    /// In the person's namespace, and not in Vitrine's.
    here: bool,
}

impl Right {
    const fn of_images(verb: &'static str, subresource: &'static str) -> Self {
        Self { verb, group: GROUP, resource: "images", subresource, here: true }
    }

    fn name(&self) -> String {
        let separator = if self.subresource.is_empty() { "" } else { "/" };
        format!("{} {}{separator}{}", self.verb, self.resource, self.subresource)
    }
}

/// Asks the API server.
pub async fn examine(case: &Case<'_>) -> Vec<Finding> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(case.cluster.client.clone());
    let mut findings = Vec::new();
    for (thing, rights) in THINGS {
        let mut lacking = Vec::new();
        for right in rights {
            let namespace = if right.here { case.cluster.namespace.as_str() } else { case.site };
            match reviews.create(&PostParams::default(), &question(right, namespace)).await {
                Ok(review) if review.status.as_ref().is_some_and(|status| status.allowed) => {}
                Ok(_) => lacking.push(format!("{} in namespace {namespace}", right.name())),
                Err(error) => {
                    findings.push(Finding::problem(
                        "your rights",
                        explain(&error).to_string(),
                        "kubectl auth can-i --list",
                    ));
                    return findings;
                }
            }
        }
        findings.push(judge(thing, &lacking));
    }
    findings
}

fn judge(thing: &str, lacking: &[String]) -> Finding {
    if lacking.is_empty() {
        return Finding::ok("your rights", format!("you may {thing}"));
    }
    let remedy = if thing.starts_with("forward") {
        "where that is not meant, use --data-url; else ask for the role vitrine-forward there"
    } else {
        "ask whoever administers the namespace for the role edit (view to look and download)"
    };
    Finding::warning("your rights", format!("you may not {thing}: {}", lacking.join(", ")), remedy)
}

fn question(right: &Right, namespace: &str) -> SelfSubjectAccessReview {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let attributes = ResourceAttributes {
        verb: some(right.verb),
        group: some(right.group),
        resource: some(right.resource),
        subresource: some(right.subresource),
        namespace: some(namespace),
        ..ResourceAttributes::default()
    };
    let spec =
        SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}
