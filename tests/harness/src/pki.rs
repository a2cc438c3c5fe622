//! A certificate authority for one test run, and what it signs. Keys are ECDSA P-256, valid for as long as rcgen's default is.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::error::{Context, Result};

/// A certificate authority that lives in memory.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate, its chain being the authority alone, and its private key (PKCS #8), both as PEM text.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl Authority {
    /// A new authority called `name`.
    ///
    /// # Errors
    /// When the cryptography library refuses.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context(|| "make a key")?;
        let issuer = CertifiedIssuer::self_signed(params, key).context(|| format!("sign the authority {name}"))?;
        Ok(Self { issuer })
    }

    /// The authority's own certificate as PEM text.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a client: Kubernetes takes the common name as the user and the organisation as the group.
    ///
    /// # Errors
    /// When the cryptography library refuses.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A certificate for a server that is reached by these host names and IP addresses.
    ///
    /// # Errors
    /// When a name is not a valid one.
    pub fn server(&self, names: &[&str]) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).context(|| "name a server")?;
        params.distinguished_name.push(DnType::CommonName, "vitrine-lab server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Identity> {
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context(|| "make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context(|| "sign a certificate")?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// TLS for a client that trusts this authority alone, and shows `identity` if it has one.
    ///
    /// # Errors
    /// When the identity's key does not fit its certificate.
    pub fn client_config(&self, identity: Option<&Identity>) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).context(|| "trust the authority")?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .context(|| "choose TLS versions")?
            .with_root_certificates(roots);
        let config = match identity {
            Some(identity) => builder
                .with_client_auth_cert(identity.chain()?, identity.private_key()?)
                .context(|| "use a client key")?,
            None => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}

impl Identity {
    /// TLS for a server that shows this identity and asks its clients for none.
    ///
    /// # Errors
    /// When the key does not fit the certificate.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .context(|| "choose TLS versions")?
            .with_no_client_auth()
            .with_single_cert(self.chain()?, self.private_key()?)
            .context(|| "use a server key")?;
        Ok(Arc::new(config))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        Ok(vec![CertificateDer::from_pem_slice(self.certificate.as_bytes()).context(|| "read a certificate")?])
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context(|| "read a key")
    }
}

/// A key pair for signing service account tokens: the private key (PKCS #8) and the public key, both as PEM text.
///
/// # Errors
/// When the cryptography library refuses.
pub fn signing_key() -> Result<(String, String)> {
    let key = KeyPair::generate().context(|| "make a key")?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Named here and not taken from the process's default, which belongs to the program under test.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
