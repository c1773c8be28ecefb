package antiphon

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/BurntSushi/toml"
)

// The layout of a profile, which is that of the antiphon command to change: the folder $ANTIPHON_HOME/profiles/NAME (~/.antiphon
// without the variable) with profile.toml (addresses: a list of host:port) and the folder credential, in which the symbolic link
// current points to a generation: a folder that never changes, with key.pem, cert.pem (leaf first) and bundle.pem.
const (
	homeVariable    = "ANTIPHON_HOME"
	profileVariable = "ANTIPHON_PROFILE"
	joinRemedy      = "run: antiphon dev  or  antiphon certs join TOKEN"
	// serverName is the DNS name every orchestrator shows, whatever address it was dialled at.
	serverName = "orchestrator.antiphon.internal"
)

var addressShape = regexp.MustCompile(`^(?:unix:.+|(?:\[[^\s\[\]]+\]|[^\s:/,@\[\]]+):([0-9]{1,5}))$`)

// checkAddresses refuses what no orchestrator can be at: it would be dialled until a deadline passes.
func checkAddresses(addresses []string) error {
	for _, address := range addresses {
		found := addressShape.FindStringSubmatch(address)
		if found != nil && found[1] == "" { // a socket
			continue
		}
		if found != nil {
			if port, err := strconv.Atoi(found[1]); err == nil && port > 0 && port <= 65535 {
				continue
			}
		}
		return setupError("%.200q is not the address of an orchestrator: write host:port, without a scheme,"+
			" such as mesh.example:7443 or [::1]:7443", address)
	}
	return nil
}

// Credentials say where a certificate is. The files may change while they are used: a client looks again every few seconds.
type Credentials struct {
	folder            string
	cert, key, bundle string
}

// CredentialFiles are three PEM files: certificate chain (leaf first), private key, and the roots to trust.
func CredentialFiles(cert, key, bundle string) Credentials {
	return Credentials{cert: cert, key: key, bundle: bundle}
}

// CredentialFolder is a credential folder as `antiphon certs` writes it, such as that of a profile.
func CredentialFolder(folder string) Credentials { return Credentials{folder: folder} }

// pems are a key, its certificate chain and the roots to trust, as they were at one moment.
type pems struct{ cert, key, bundle []byte }

func (p pems) equal(other pems) bool {
	return bytes.Equal(p.cert, other.cert) && bytes.Equal(p.key, other.key) && bytes.Equal(p.bundle, other.bundle)
}

// notAfter is when the certificate ends; the zero time where that cannot be told.
func (p pems) notAfter() time.Time {
	block, _ := pem.Decode(p.cert)
	if block == nil {
		return time.Time{}
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}
	return leaf.NotAfter
}

// tls is the way to an orchestrator with these, and nothing else.
func (p pems) tls() (*tls.Config, error) {
	pair, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		return nil, setupError("the certificate cannot be used: %v; %s", err, joinRemedy)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(p.bundle) {
		return nil, setupError("the trust bundle holds no certificate; %s", joinRemedy)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: serverName, MinVersion: tls.VersionTLS12,
	}, nil
}

// read is what the files hold now.
func (c Credentials) read() (pems, error) {
	cert, key, bundle := c.cert, c.key, c.bundle
	if c.folder != "" {
		// The link once, so that key and certificate are of one generation whatever happens meanwhile.
		current, err := os.Readlink(filepath.Join(c.folder, "current"))
		if err != nil {
			return pems{}, unreadable(err)
		}
		if !filepath.IsAbs(current) {
			current = filepath.Join(c.folder, current)
		}
		cert, key, bundle = filepath.Join(current, "cert.pem"), filepath.Join(current, "key.pem"), filepath.Join(current, "bundle.pem")
	}
	var made pems
	for path, into := range map[string]*[]byte{cert: &made.cert, key: &made.key, bundle: &made.bundle} {
		data, err := os.ReadFile(path)
		if err != nil {
			return pems{}, unreadable(err)
		}
		*into = data
	}
	return made, nil
}

func unreadable(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return setupError("there is no certificate: %v; %s", err, joinRemedy)
	}
	return setupError("the certificate cannot be read: %v", err)
}

// loadProfile is whom to dial, as whom: the named profile, or the one the environment chooses.
func loadProfile(name string) (addresses []string, credentials Credentials, err error) {
	if name == "" {
		name = os.Getenv(profileVariable)
	}
	if name == "" {
		name = "default"
	}
	if !namePattern.MatchString(name) {
		return nil, Credentials{}, setupError("profile %.80q must be 1-63 lowercase letters, digits and inner hyphens", name)
	}
	home := os.Getenv(homeVariable)
	if home == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return nil, Credentials{}, setupError("there is no home folder: %v; set %s", err, homeVariable)
		}
		home = filepath.Join(user, ".antiphon")
	}
	folder := filepath.Join(home, "profiles", name)
	path := filepath.Join(folder, "profile.toml")
	var profile struct {
		Addresses []string `toml:"addresses"`
	}
	if _, err := toml.DecodeFile(path, &profile); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, Credentials{}, setupError("there is no profile '%s' in %s; %s", name, filepath.Dir(folder), joinRemedy)
		}
		return nil, Credentials{}, setupError("%s is not a profile: %v; mend it, or %s", path, err, joinRemedy)
	}
	if len(profile.Addresses) == 0 {
		return nil, Credentials{}, setupError(
			"%s is not a profile: 'addresses' must be a list of host:port; mend it, or %s", path, joinRemedy)
	}
	return profile.Addresses, CredentialFolder(filepath.Join(folder, "credential")), nil
}
