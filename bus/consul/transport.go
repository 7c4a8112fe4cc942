package consul

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
)

// answer is what the wire said about one call. The API client turns some answers
// into text without their status; this keeps it. It is written by the goroutine
// that makes the call.
type answer struct {
	status  int      // 0: no answer came
	token   string   // asks with this one instead of the store's
	secrets []string // what was sent and must not appear in an error
	// raw asks for a key's value as it is. The API client only knows values as base64 inside
	// JSON, so the value is kept here, and the client is told that there is no such key.
	raw  bool
	body []byte
}

type answerKey struct{}

func withAnswer(ctx context.Context, a *answer) context.Context {
	return context.WithValue(ctx, answerKey{}, a)
}

// recorder notes the status of every answer for the call that asked, and sends the token of the moment.
type recorder struct {
	next  http.RoundTripper
	token *token
}

func (r recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	a, _ := req.Context().Value(answerKey{}).(*answer)
	if a != nil && a.token != "" {
		return r.send(req, a, a.token)
	}
	token := r.token.current()
	resp, err := r.send(req, a, token)
	if err != nil || !unknownToken(resp) {
		return resp, err
	}
	// Nothing was done. If the file holds another token, it may be done with that.
	token, other := r.token.instead(token)
	if !other || req.Body != nil && req.GetBody == nil {
		return resp, err
	}
	_ = resp.Body.Close()
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Body = body
	}
	return r.send(req, a, token)
}

// unknownToken reports whether the answer says that Consul does not know the token (any more).
func unknownToken(resp *http.Response) bool {
	if resp.StatusCode != http.StatusForbidden {
		return false
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(text), resp.Body), resp.Body}
	return bytes.Contains(text, []byte(textUnknownToken))
}

// send makes one request with the token.
func (r recorder) send(req *http.Request, a *answer, token string) (*http.Response, error) {
	if raw := a != nil && a.raw; raw || req.Header.Get("X-Consul-Token") != token {
		req = req.Clone(req.Context()) // it is the client's
		if raw {
			req.URL.RawQuery += "&raw="
		}
		req.Header.Del("X-Consul-Token")
		if token != "" {
			req.Header.Set("X-Consul-Token", token)
		}
	}
	if a != nil {
		a.status = 0
		if token != "" {
			a.secrets = append(a.secrets, token)
		}
		if _, password, ok := req.BasicAuth(); ok && password != "" {
			a.secrets = append(a.secrets, password)
		}
	}
	resp, err := r.next.RoundTrip(req)
	if err != nil || a == nil {
		return resp, err
	}
	a.status = resp.StatusCode
	if a.raw && resp.StatusCode == http.StatusOK {
		defer resp.Body.Close()
		buf := bytes.NewBuffer(make([]byte, 0, max(0, resp.ContentLength)+bytes.MinRead))
		if _, err := buf.ReadFrom(io.LimitReader(resp.Body, maxPut+1)); err != nil {
			return nil, fmt.Errorf("read value: %w", err)
		}
		a.body = buf.Bytes()
		resp.StatusCode, resp.Body = http.StatusNotFound, http.NoBody
	}
	return resp, nil
}

// connection is an API client and how to close its idle connections.
type connection struct {
	api  *api.Client
	idle func()
}

// tokenOf is the token that the options and the environment name.
func tokenOf(opt Options) (*token, error) {
	env := api.DefaultConfig()
	switch {
	case opt.TokenFile != "":
		return newToken(opt.TokenFile, opt.Token)
	case opt.Token != "":
		return newToken("", opt.Token)
	default:
		return newToken(env.TokenFile, env.Token)
	}
}

// connect makes an API client on a transport of our own: the API's default keeps
// few idle connections, none at all on a unix socket, and has no bound.
func connect(opt Options, token *token, conns int) (connection, string, error) {
	config := api.DefaultConfig()
	config.Token = token.value // what is sent says recorder
	if opt.Address != "" {
		config.Address = opt.Address
		if strings.HasPrefix(opt.Address, "http://") {
			config.Scheme = "http" // written out, it beats CONSUL_HTTP_SSL
		}
	}
	if opt.Datacenter != "" {
		config.Datacenter = opt.Datacenter
	}
	if opt.Namespace != "" {
		config.Namespace = opt.Namespace
	}
	if opt.Partition != "" {
		config.Partition = opt.Partition
	}
	overrideTLS(&config.TLSConfig, opt.TLS)

	scheme, rest, found := strings.Cut(config.Address, "://")
	if !found {
		scheme, rest = config.Scheme, config.Address
	}
	if scheme == "http" && config.Scheme == "https" {
		scheme = "https" // as the API does: TLS that was asked for stays
	}
	if host, _, _ := strings.Cut(rest, "/"); scheme != "unix" && strings.Contains(host, "@") {
		// It would end up in every error text.
		return connection{}, "", errors.New("the address holds a user name or password: put them into CONSUL_HTTP_AUTH=user:password")
	}

	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}
	dial := dialer.DialContext
	if scheme == "unix" {
		// The API would replace our transport if it saw the scheme.
		config.Address, config.Scheme = rest, "http"
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", rest)
		}
	}
	tlsConfig, err := api.SetupTLSConfig(&config.TLSConfig)
	if err != nil {
		return connection{}, "", fmt.Errorf("%w (files: CONSUL_CACERT, CONSUL_CAPATH, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY)", err)
	}
	if certFile, keyFile := config.TLSConfig.CertFile, config.TLSConfig.KeyFile; len(tlsConfig.Certificates) == 1 && certFile != "" && keyFile != "" {
		// Read for each connection, so that a renewed one needs no restart.
		var good atomic.Pointer[tls.Certificate]
		good.Store(&tlsConfig.Certificates[0])
		tlsConfig.Certificates = nil
		tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if now, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil {
				good.Store(&now)
			} // else it may be being written
			return good.Load(), nil
		}
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dial,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   5 * time.Second,
		ExpectContinueTimeout: time.Second,
		MaxConnsPerHost:       conns,
		MaxIdleConns:          conns,
		MaxIdleConnsPerHost:   conns,
		IdleConnTimeout:       idleTimeout,
		// The servers are near, and packing costs them more than sending.
		DisableCompression: true,
	}
	config.HttpClient = &http.Client{
		Transport: recorder{next: transport, token: token},
		// Go would send the token along, to any host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	client, err := api.NewClient(config)
	if err != nil {
		return connection{}, "", err
	}
	return connection{api: client, idle: transport.CloseIdleConnections}, scheme + "://" + rest, nil
}

// overrideTLS lays the fields that are set in over those of conf.
func overrideTLS(conf *api.TLSConfig, over api.TLSConfig) {
	for _, f := range []struct {
		to   *string
		from string
	}{
		{&conf.Address, over.Address},
		{&conf.CAFile, over.CAFile},
		{&conf.CAPath, over.CAPath},
		{&conf.CertFile, over.CertFile},
		{&conf.KeyFile, over.KeyFile},
	} {
		if f.from != "" {
			*f.to = f.from
		}
	}
	for _, f := range []struct{ to, from *[]byte }{
		{&conf.CAPem, &over.CAPem},
		{&conf.CertPEM, &over.CertPEM},
		{&conf.KeyPEM, &over.KeyPEM},
	} {
		if len(*f.from) > 0 {
			*f.to = *f.from
		}
	}
	if over.InsecureSkipVerify {
		conf.InsecureSkipVerify = true
	}
}
