package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Certificates are the files of a certificate authority of our own, in PEM: what a client of
// a cluster with [Options.MutualTLS] needs.
type Certificates struct {
	CA                    string
	ClientCert, ClientKey string

	server, serverKey string
}

// Certificates returns the files of a cluster with [Options.MutualTLS].
func (c *Cluster) Certificates() Certificates { return c.certs }

// ServerName is what the servers' certificate is made out to, beside localhost and 127.0.0.1.
const ServerName = "server.dc1.consul"

// secure makes the certificates, and the client that our own questions need.
func (c *Cluster) secure() error {
	certs, err := NewCertificates(c.dir)
	if err != nil {
		return err
	}
	c.certs = certs
	own, err := tls.LoadX509KeyPair(certs.ClientCert, certs.ClientKey)
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(certs.CA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c.http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12}
	return nil
}

// NewCertificates makes an authority and what it signs, valid for a day, in dir. The authority's key is
// thrown away.
func NewCertificates(dir string) (Certificates, error) {
	file := func(name string) string { return filepath.Join(dir, name) }
	c := Certificates{
		CA: file("ca.pem"), ClientCert: file("client.pem"), ClientKey: file("client-key.pem"),
		server: file("server.pem"), serverKey: file("server-key.pem"),
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gatemesh throwaway authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	sign := func(cert *x509.Certificate, key *ecdsa.PrivateKey, certFile, keyFile string) error {
		der, err := x509.CreateCertificate(rand.Reader, cert, ca, key.Public(), caKey)
		if err != nil {
			return err
		}
		if err := writePEM(certFile, "CERTIFICATE", der); err != nil || keyFile == "" {
			return err
		}
		if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			return err
		}
		return writePEM(keyFile, "PRIVATE KEY", der)
	}
	if err := sign(ca, caKey, c.CA, ""); err != nil {
		return c, err
	}
	for i, leaf := range []struct {
		cert     *x509.Certificate
		to, keys string
	}{
		{&x509.Certificate{
			Subject: pkix.Name{CommonName: ServerName}, DNSNames: []string{ServerName, "localhost"}, IPAddresses: []net.IP{net.ParseIP(loopback)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, c.server, c.serverKey},
		{&x509.Certificate{
			Subject: pkix.Name{CommonName: "client"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, c.ClientCert, c.ClientKey},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return c, err
		}
		leaf.cert.SerialNumber, leaf.cert.KeyUsage = big.NewInt(int64(i+2)), x509.KeyUsageDigitalSignature
		leaf.cert.NotBefore, leaf.cert.NotAfter = ca.NotBefore, ca.NotAfter
		if err := sign(leaf.cert, key, leaf.to, leaf.keys); err != nil {
			return c, err
		}
	}
	return c, nil
}

func writePEM(name, kind string, der []byte) error {
	return os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
