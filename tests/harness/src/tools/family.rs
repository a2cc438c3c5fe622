//! The Go modules, and which programs each one yields. One module per family, because Kubernetes, etcd and helm pin different
//! versions of the same libraries. To move to another version: edit `go.mod`, run `go mod tidy`, commit both files.

use sha2::{Digest, Sha256};

/// One Go module of `go/`, as it was when this crate was compiled.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// The name of its folder in `go/`.
    pub name: &'static str,
    /// The module's files, by name.
    pub files: &'static [(&'static str, &'static str)],
    /// The packages to build, each with the name of the file that it becomes.
    pub programs: &'static [(&'static str, &'static str)],
    /// Further names of the first of these files: it acts as the program it is called as.
    pub links: &'static [&'static str],
    /// The module whose version is the family's.
    pub module: &'static str,
    /// The package with version variables that the linker must set, if there is one.
    pub version_package: Option<&'static str>,
}

pub static KUBERNETES: Family = Family {
    name: "kubernetes",
    files: &[
        ("go.mod", include_str!("../../go/kubernetes/go.mod")),
        ("go.sum", include_str!("../../go/kubernetes/go.sum")),
        ("main.go", include_str!("../../go/kubernetes/main.go")),
    ],
    programs: &[("vitrine.test/kubernetes", "kubernetes")],
    links: &["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"],
    module: "k8s.io/kubernetes",
    version_package: Some("k8s.io/component-base/version"),
};

pub static ETCD: Family = Family {
    name: "etcd",
    files: &[("go.mod", include_str!("../../go/etcd/go.mod")), ("go.sum", include_str!("../../go/etcd/go.sum"))],
    programs: &[("go.etcd.io/etcd/server/v3", "etcd")],
    links: &[],
    module: "go.etcd.io/etcd/server/v3",
    version_package: None,
};

pub static HELM: Family = Family {
    name: "helm",
    files: &[("go.mod", include_str!("../../go/helm/go.mod")), ("go.sum", include_str!("../../go/helm/go.sum"))],
    programs: &[("helm.sh/helm/v4/cmd/helm", "helm")],
    links: &[],
    module: "helm.sh/helm/v4",
    version_package: None,
};

pub static CONTAINERD: Family = Family {
    name: "containerd",
    files: &[
        ("go.mod", include_str!("../../go/containerd/go.mod")),
        ("go.sum", include_str!("../../go/containerd/go.sum")),
    ],
    programs: &[
        ("github.com/containerd/containerd/v2/cmd/containerd", "containerd"),
        ("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "containerd-shim-runc-v2"),
        ("github.com/containerd/containerd/v2/cmd/ctr", "ctr"),
    ],
    links: &[],
    module: "github.com/containerd/containerd/v2",
    version_package: None,
};

pub static CNI: Family = Family {
    name: "cni",
    files: &[("go.mod", include_str!("../../go/cni/go.mod")), ("go.sum", include_str!("../../go/cni/go.sum"))],
    programs: &[
        ("github.com/containernetworking/plugins/plugins/main/bridge", "bridge"),
        ("github.com/containernetworking/plugins/plugins/main/loopback", "loopback"),
        ("github.com/containernetworking/plugins/plugins/ipam/host-local", "host-local"),
    ],
    links: &[],
    module: "github.com/containernetworking/plugins",
    version_package: None,
};

pub static GITOPS: Family = Family {
    name: "gitops",
    files: &[
        ("go.mod", include_str!("../../go/gitops/go.mod")),
        ("go.sum", include_str!("../../go/gitops/go.sum")),
        ("main.go", include_str!("../../go/gitops/main.go")),
    ],
    programs: &[("vitrine.test/gitops", "gitops")],
    links: &[],
    module: "sigs.k8s.io/cli-utils",
    version_package: None,
};

impl Family {
    /// The version that `go.mod` pins, such as `v1.37.2`.
    pub fn version(&self) -> &'static str {
        let go_mod = self.files.first().map_or("", |(_, text)| text);
        go_mod.lines().find_map(|line| self.version_in(line)).unwrap_or("unknown")
    }

    fn version_in(&self, line: &'static str) -> Option<&'static str> {
        let mut words = line.split_whitespace().skip_while(|&word| word == "require");
        (words.next() == Some(self.module)).then(|| words.next()).flatten()
    }

    /// What the linker is told: leave out debug tables, and set the version. Without it the API server calls itself v0.0.0 and
    /// kubectl refuses its own version.
    pub fn linker_flags(&self) -> String {
        let Some(package) = self.version_package else {
            return "-s -w".to_owned();
        };
        let version = self.version();
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or("0"), numbers.next().unwrap_or("0"));
        let variables = [
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
            ("gitCommit", "unknown"),
            ("buildDate", "1970-01-01T00:00:00Z"),
        ];
        let sets = variables.map(|(name, value)| format!("-X {package}.{name}={value}"));
        format!("-s -w {}", sets.join(" "))
    }

    /// A digest of all that decides what the build makes, given what Go says of its version and target.
    pub fn key(&self, go: &str) -> String {
        let mut digest = Sha256::new();
        for (name, text) in self.files {
            digest.update(format!("{name} {}\n{text}", text.len()));
        }
        digest.update(format!("{go}\n{:?}\n{}\n{:?}", self.programs, self.linker_flags(), self.links));
        // 64 bits tell apart the handful of builds that one cache ever sees, and keep paths readable.
        digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_modules() {
        for family in [&KUBERNETES, &ETCD, &HELM, &CONTAINERD, &CNI, &GITOPS] {
            let version = family.version();
            assert!(version.starts_with('v') && version.matches('.').count() == 2, "{}: {version}", family.name);
        }
        let flags = KUBERNETES.linker_flags();
        let minor = KUBERNETES.version().split('.').nth(1).expect("a minor number");
        assert!(flags.contains(&format!("version.gitVersion={} ", KUBERNETES.version())), "{flags}");
        assert!(flags.contains(&format!("version.gitMinor={minor} ")), "{flags}");
    }

    #[test]
    fn whatever_decides_the_result_changes_the_key() {
        let key = ETCD.key("go1.26.8 linux amd64");
        assert_eq!(key, ETCD.key("go1.26.8 linux amd64"));
        assert_ne!(key, ETCD.key("go1.26.9 linux amd64"));
        assert_ne!(key, HELM.key("go1.26.8 linux amd64"));
        let another_sum = [ETCD.files[0], ("go.sum", "")];
        let files = Box::leak(Box::new(another_sum));
        let edited = Family { files, ..ETCD };
        assert_ne!(key, edited.key("go1.26.8 linux amd64"));
    }
}
