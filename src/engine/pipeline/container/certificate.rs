//! The certificate file of an OVF package: a signature over the manifest, and the certificate of who made it (DSP0243, section 5.1).
//!
//! That the signature fits the certificate shows that both belong together, not whom to trust: the certificate comes with the archive,
//! and there is nothing to hold it against.

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use webpki::{EndEntityCert, aws_lc_rs as algorithms};

use super::manifest::split_line;
use crate::model::{Rule, Violation};

/// Verifies the signature in `file` over `manifest`, which is called `name`. The answer says what was checked and what not.
///
/// # Errors
/// A violation if the signature does not fit.
pub(super) fn check(file: &[u8], name: &str, manifest: &[u8]) -> Result<String, Violation> {
    let text = String::from_utf8_lossy(file);
    let Some((algorithm, _, hex)) = text.lines().find_map(|line| split_line(line.trim())) else {
        return Ok("not checked: it has no line with a signature".to_owned());
    };
    let algorithm = match algorithm {
        "sha256" => algorithms::RSA_PKCS1_2048_8192_SHA256,
        "sha512" => algorithms::RSA_PKCS1_2048_8192_SHA512,
        other => return Ok(format!("not checked: signatures with {other} prove nothing any more")),
    };
    let Ok(signature) = hex::decode(hex) else {
        return Ok("not checked: its signature is not in hexadecimal digits".to_owned());
    };
    let Some(Ok(der)) = CertificateDer::pem_slice_iter(file).next() else {
        return Ok("not checked: it holds no certificate".to_owned());
    };
    let certificate = match EndEntityCert::try_from(&der) {
        Ok(certificate) => certificate,
        Err(error) => return Ok(format!("not checked: its certificate cannot be read ({error})")),
    };
    match certificate.verify_signature(algorithm, manifest, &signature) {
        Ok(()) => Ok("the signature is right; who issued the certificate was not checked".to_owned()),
        Err(webpki::Error::InvalidSignatureForPublicKey) => {
            let message = format!(
                "the signature over {name} is not by the certificate beside it: the archive was changed after it was signed"
            );
            Err(Violation::new(Rule::ChecksumMismatch, "certificate", name, message))
        }
        Err(error) => Ok(format!("not checked: the kind of its key is not known ({error})")),
    }
}
