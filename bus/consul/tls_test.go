package consul

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// TestMutualTLS: the environment of Consul's own tools, against a real server that wants certificates and a token. Each
// mistake is one line that names the variable.
func TestMutualTLS(t *testing.T) {
	r := cluster.ForTestWith(t, cluster.Options{ACL: true, MutualTLS: true})
	certs := r.Certificates()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(r.Token()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := cluster.NewCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	plain := cluster.ForTest(t, 1)
	right := map[string]string{
		"CONSUL_HTTP_ADDR": strings.TrimPrefix(r.Addr(0), "https://"), "CONSUL_HTTP_SSL": "true", "CONSUL_CACERT": certs.CA,
		"CONSUL_CLIENT_CERT": certs.ClientCert, "CONSUL_CLIENT_KEY": certs.ClientKey, "CONSUL_HTTP_TOKEN_FILE": token,
	}
	for _, tt := range []struct {
		name   string
		change map[string]string
		kind   error // nil: it works
		says   string
	}{
		{"all right", nil, nil, ""},
		{"named in the URL", map[string]string{"CONSUL_HTTP_ADDR": r.Addr(0), "CONSUL_HTTP_SSL": ""}, nil, ""},
		{"by the server's name", map[string]string{"CONSUL_TLS_SERVER_NAME": cluster.ServerName}, nil, ""},
		{"without verifying", map[string]string{"CONSUL_CACERT": other.CA, "CONSUL_HTTP_SSL_VERIFY": "false"}, nil, ""},
		{"wrong authority", map[string]string{"CONSUL_CACERT": other.CA}, bus.ErrUnavailable, "CONSUL_CACERT"},
		{"no authority", map[string]string{"CONSUL_CACERT": ""}, bus.ErrUnavailable, "CONSUL_CACERT"},
		{"wrong name", map[string]string{"CONSUL_TLS_SERVER_NAME": "consul.example"}, bus.ErrUnavailable, "CONSUL_TLS_SERVER_NAME"},
		{"no certificate", map[string]string{"CONSUL_CLIENT_CERT": "", "CONSUL_CLIENT_KEY": ""}, bus.ErrUnavailable, "CONSUL_CLIENT_CERT"},
		{"a stranger's certificate", map[string]string{"CONSUL_CLIENT_CERT": other.ClientCert, "CONSUL_CLIENT_KEY": other.ClientKey}, bus.ErrUnavailable, "CONSUL_CLIENT_CERT"},
		{"plain to TLS", map[string]string{"CONSUL_HTTP_SSL": ""}, errNoClass, "CONSUL_HTTP_SSL=true"},
		{"TLS to plain", map[string]string{"CONSUL_HTTP_ADDR": strings.TrimPrefix(plain.Addr(0), "http://")}, bus.ErrUnavailable, "unset CONSUL_HTTP_SSL"},
		{"no token", map[string]string{"CONSUL_HTTP_TOKEN_FILE": ""}, bus.ErrForbidden, "CONSUL_HTTP_TOKEN_FILE"},
		{"no file of the authority", map[string]string{"CONSUL_CACERT": filepath.Join(dir, "none")}, errSettings, "CONSUL_CACERT"},
		{"no file of the key", map[string]string{"CONSUL_CLIENT_KEY": filepath.Join(dir, "none")}, errSettings, "CONSUL_CLIENT_KEY"},
		{"no file of the token", map[string]string{"CONSUL_HTTP_TOKEN_FILE": filepath.Join(dir, "none")}, errSettings, "CONSUL_HTTP_TOKEN_FILE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, env := range []map[string]string{right, tt.change} {
				for k, v := range env {
					t.Setenv(k, v)
				}
			}
			s, err := New(Options{})
			if err != nil {
				err = errors.Join(errSettings, err)
			} else {
				defer s.Close()
				_, err = s.Txn(t.Context(), []bus.Op{set("tls/"+tt.name, "x")})
				if werr := watchOnce(t, s); tt.kind == nil && werr != nil {
					t.Errorf("watch: %v", werr)
				}
			}
			switch {
			case tt.kind == nil && err != nil:
				t.Error(err)
			case tt.kind == nil:
				if !strings.HasPrefix(s.Describe(), "consul at https://") {
					t.Errorf("it says %q", s.Describe())
				}
			case tt.kind == errNoClass && errors.Is(err, bus.ErrUnavailable), tt.kind != errNoClass && !errors.Is(err, tt.kind):
				t.Errorf("it is %v", err)
			case !strings.Contains(err.Error(), tt.says) || tt.kind != errSettings && strings.Contains(err.Error(), "\n"):
				t.Errorf("no %s in %v", tt.says, err)
			}
		})
	}
}

// TestDeliveryHardened: the whole delivery contract as a hardened Consul has it, all at once: HTTPS with certificates of both sides, nothing
// allowed but by a policy, and each gateway with the token of the rules that are shipped for it.
func TestDeliveryHardened(t *testing.T) {
	r := newRealm(t, cluster.Options{MutualTLS: true, Config: manyClients})
	if !strings.HasPrefix(r.admin.Describe(), "consul at https://") {
		t.Fatal(r.admin.Describe())
	}
	anonymous := open(t, r.client(r.Addr(0), ""))
	if _, err := anonymous.Txn(t.Context(), []bus.Op{set(bus.Root+"x", "x")}); !isForbidden(err) {
		t.Fatalf("without a token: %v", err)
	}
	bustest.DeliveryAs(t, func(t *testing.T) func(bus.Topology, string) bus.Store {
		return func(mesh bus.Topology, gateway string) bus.Store {
			if gateway == "" {
				return open(t, r.client(r.Addr(0), r.Token()))
			}
			return r.as(t, mesh, gateway, "server-1", r.Addr(0))
		}
	})
}

// TestClientCertificateIsRenewed: a certificate that is replaced is used with the next connection.
func TestClientCertificateIsRenewed(t *testing.T) {
	r := cluster.ForTestWith(t, cluster.Options{MutualTLS: true})
	right := r.Certificates()
	own, err := cluster.NewCertificates(t.TempDir()) // of an authority that the server does not know
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Address: r.Addr(0), TLS: api.TLSConfig{CAFile: right.CA, CertFile: own.ClientCert, KeyFile: own.ClientKey}})
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "CONSUL_CLIENT_CERT") {
		t.Fatalf("a stranger's certificate: %v", err)
	}
	for from, to := range map[string]string{right.ClientCert: own.ClientCert, right.ClientKey: own.ClientKey} {
		raw, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(t.Context(), "k"); err != nil {
		t.Errorf("the new certificate: %v", err)
	}
	// One that is being written does no harm.
	if err := os.WriteFile(own.ClientKey, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.idle()
	if _, err := s.Get(t.Context(), "k"); err != nil {
		t.Errorf("half a key: %v", err)
	}
}

// What the table says of errors of no sentinel: New refuses it, or a call fails for good.
var (
	errSettings = errors.New("refused by New")
	errNoClass  = errors.New("of no class")
)

func watchOnce(t *testing.T, s *Store) error {
	_, _, err := s.Watch(t.Context(), "tls/", 0)
	return err
}
