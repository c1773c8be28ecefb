package antiphon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// authority issues certificates for the tests of clients.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
	next int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, next: 1}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key, a.cert = key, template
	a.pem, _ = a.sign(template, key)
	return a
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) (cert, private []byte) {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

func (a *authority) issue(name string) (cert, private []byte) {
	a.t.Helper()
	return a.issueUntil(name, time.Now().Add(time.Hour))
}

func (a *authority) issueUntil(name string, end time.Time) (cert, private []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.next++
	return a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: name}, DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, key)
}

// store keeps a certificate in a credential folder, as the antiphon command does: a new generation, then the link.
func (a *authority) store(folder, name string) {
	a.t.Helper()
	a.storeUntil(folder, name, time.Now().Add(time.Hour))
}

func (a *authority) storeUntil(folder, name string, end time.Time) {
	a.t.Helper()
	cert, key := a.issueUntil(name, end)
	generation := filepath.Join(folder, name)
	if err := os.MkdirAll(generation, 0o700); err != nil {
		a.t.Fatal(err)
	}
	for file, data := range map[string][]byte{"cert.pem": cert, "key.pem": key, "bundle.pem": a.pem} {
		if err := os.WriteFile(filepath.Join(generation, file), data, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	next := filepath.Join(folder, "next")
	if err := os.Symlink(name, next); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(folder, "current")); err != nil {
		a.t.Fatal(err)
	}
}

// orchestrator answers clients as a test says; it keeps what it saw of each call.
type orchestrator struct {
	antiphonv1.UnimplementedRunServiceServer
	antiphonv1.UnimplementedGraphServiceServer
	antiphonv1.UnimplementedClusterServiceServer
	address string
	server  *grpc.Server
	submit  func(context.Context, *antiphonv1.SubmitRunRequest) (*antiphonv1.SubmitRunResponse, error)
	get     func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error)
	watch   func(*antiphonv1.WatchRunRequest, antiphonv1.RunService_WatchRunServer) error
	many    func(antiphonv1.RunService_SubmitRunsServer) error
	cluster func() (*antiphonv1.GetClusterResponse, error) // refused when it is nil

	mutex sync.Mutex
	calls []call
}

type call struct {
	caller   string
	trace    string
	deadline bool
}

func newOrchestrator(t *testing.T, a *authority, change ...func(*orchestrator)) *orchestrator {
	t.Helper()
	cert, key := a.issue("orchestrator")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem)
	o := &orchestrator{}
	for _, one := range change {
		one(o)
	}
	o.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	antiphonv1.RegisterRunServiceServer(o.server, o)
	antiphonv1.RegisterClusterServiceServer(o.server, o)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.address = listener.Addr().String()
	go o.server.Serve(listener)
	t.Cleanup(o.server.Stop)
	return o
}

func (o *orchestrator) note(ctx context.Context) {
	made := call{}
	if from, ok := peer.FromContext(ctx); ok {
		made.caller = from.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].Subject.CommonName
	}
	if values := metadata.ValueFromIncomingContext(ctx, "traceparent"); len(values) == 1 {
		made.trace = values[0]
	}
	_, made.deadline = ctx.Deadline()
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.calls = append(o.calls, made)
}

func (o *orchestrator) seen() []call {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return append([]call(nil), o.calls...)
}

func (o *orchestrator) SubmitRun(ctx context.Context, r *antiphonv1.SubmitRunRequest) (*antiphonv1.SubmitRunResponse, error) {
	o.note(ctx)
	return o.submit(ctx, r)
}

func (o *orchestrator) GetRun(ctx context.Context, r *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
	o.note(ctx)
	return o.get(ctx, r)
}

func (o *orchestrator) WatchRun(r *antiphonv1.WatchRunRequest, stream antiphonv1.RunService_WatchRunServer) error {
	o.note(stream.Context())
	return o.watch(r, stream)
}

func (o *orchestrator) SubmitRuns(stream antiphonv1.RunService_SubmitRunsServer) error {
	o.note(stream.Context())
	return o.many(stream)
}

func (o *orchestrator) GetCluster(context.Context, *antiphonv1.GetClusterRequest) (*antiphonv1.GetClusterResponse, error) {
	if o.cluster == nil {
		return nil, refusalOf(NotGranted, "not granted", nil)
	}
	return o.cluster()
}
