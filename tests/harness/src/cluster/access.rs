//! The keys of one control plane and the kubeconfigs made of them, all in its scope's folder, which only its user can read.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;

use crate::error::{Context, Result};
use crate::pki::{Authority, Identity, signing_key};

/// What the API server is reached by. 10.96.0.1 is its service's address, 10.77.0.1 that of the gateway of a network of its own.
const SERVER_NAMES: [&str; 7] =
    ["127.0.0.1", "localhost", "10.77.0.1", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];

pub struct Access {
    dir: PathBuf,
    pub authority: Authority,
    admin: Identity,
    controllers: Identity,
}

/// How a kubeconfig's user proves who it is.
pub enum Proof<'a> {
    Certificate(&'a Identity),
    Token(&'a str),
}

impl Access {
    /// Makes the keys and writes the files that the servers read (`ca.crt`, `apiserver.{crt,key}`, `admin.{crt,key}`,
    /// `accounts.{key,pub}`) to `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        let authority = Authority::new("vitrine-lab")?;
        let admin = authority.client("admin", Some("system:masters"))?;
        // The controllers act as themselves and not each as its own service account, which starts 3 s faster, but takes every right.
        let controllers = authority.client("system:kube-controller-manager", Some("system:masters"))?;
        let server = authority.server(&SERVER_NAMES)?;
        let (private, public) = signing_key()?;
        let access = Self { dir: dir.to_owned(), authority, admin, controllers };
        access.write("ca.crt", &access.authority.pem())?;
        access.write("apiserver.crt", &server.certificate)?;
        access.write("apiserver.key", &server.key)?;
        access.write("admin.crt", &access.admin.certificate)?;
        access.write("admin.key", &access.admin.key)?;
        access.write("accounts.key", &private)?;
        access.write("accounts.pub", &public)?;
        Ok(access)
    }

    /// Writes the kubeconfigs of the administrator and of the controllers.
    pub fn write_kubeconfigs(&self, url: &str) -> Result<()> {
        self.write("admin.kubeconfig", &self.kubeconfig(url, &Proof::Certificate(&self.admin)))?;
        self.write("controllers.kubeconfig", &self.kubeconfig(url, &Proof::Certificate(&self.controllers)))
    }

    /// The text of a kubeconfig. It is JSON, which is YAML too, and nothing in it needs escaping: base64, a URL, a token.
    pub fn kubeconfig(&self, url: &str, proof: &Proof<'_>) -> String {
        let ca = STANDARD.encode(self.authority.pem());
        let user = match proof {
            Proof::Token(token) => format!(r#""token":"{token}""#),
            Proof::Certificate(identity) => {
                let (certificate, key) = (STANDARD.encode(&identity.certificate), STANDARD.encode(&identity.key));
                format!(r#""client-certificate-data":"{certificate}","client-key-data":"{key}""#)
            }
        };
        format!(
            concat!(
                r#"{{"apiVersion":"v1","kind":"Config","current-context":"lab","#,
                r#""clusters":[{{"name":"lab","cluster":{{"server":"{url}","certificate-authority-data":"{ca}"}}}}],"#,
                r#""users":[{{"name":"lab","user":{{{user}}}}}],"#,
                r#""contexts":[{{"name":"lab","context":{{"cluster":"lab","user":"lab"}}}}]}}"#
            ),
            url = url,
            ca = ca,
            user = user
        )
    }

    /// TLS with the administrator's certificate.
    pub fn admin_tls(&self) -> Result<Arc<ClientConfig>> {
        self.authority.client_config(Some(&self.admin))
    }

    /// The path of a file of this control plane.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file of this control plane.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, text).context(|| format!("write {}", path.display()))
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Access").field("dir", &self.dir).finish_non_exhaustive()
    }
}
