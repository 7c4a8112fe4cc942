package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// onConsul runs a second gateway of the same configuration on a Consul server, works with it, and looks for the secrets in
// the server's snapshot, which is what its operators and their backups have. What is planted there afterwards must be found.
func (f *flight) onConsul(config string, env []string, roots *x509.CertPool, token, control string) {
	f.t.Helper()
	c := cluster.ForTest(f.t, 1)
	dir := f.t.TempDir()
	text := strings.Replace(config, `store: "local"`, `store: "consul"`, 1)
	text = strings.Replace(text, "consul: { ", fmt.Sprintf("consul: { address: %q, ", c.Addr(0)), 1)
	text = regexp.MustCompile(`dataDir: "[^"]*"`).ReplaceAllString(text, fmt.Sprintf("dataDir: %q", filepath.Join(dir, "data")))
	file := filepath.Join(dir, "openclaw.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	g := f.start(env, file)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	for _, r := range []struct {
		method, path, body, bearer string
		want                       int
	}{
		{"POST", "/v1/messages", `{"to":"echo","text":"` + control + `","wait":"replied"}`, token, http.StatusOK},
		{"POST", "/v1/messages", `{"to":"checks","text":"all well?","capability":"infra.check","wait":"replied"}`, token, http.StatusOK},
		{"POST", "/v1/state/events", `{"agent":"echo","event":"` + control + ` happened"}`, token, 0},
		{"POST", "/v1/messages", `{"to":"echo","text":"x"}`, f.hatch("a wrong token on Consul"), http.StatusUnauthorized},
		{"POST", "/v1/messages", `{"to":"echo","text":"x","token":"` + f.hatch("a token in a body") + `"}`, token, http.StatusBadRequest},
	} {
		req, err := http.NewRequestWithContext(f.t.Context(), r.method, g.url+r.path, strings.NewReader(r.body))
		if err != nil {
			f.t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+r.bearer)
		resp, err := client.Do(req)
		if err != nil {
			f.t.Fatal(err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || r.want != 0 && resp.StatusCode != r.want {
			f.t.Errorf("%s %s: %d, %s, %v", r.method, r.path, resp.StatusCode, answer, err)
		}
	}
	const where = "Consul's snapshot"
	f.written[where] = snapshot(f.t, c.Addr(0))
	for _, want := range []string{control, "openclaw/owners/gateways/lone", "openclaw/results/lone/"} {
		if !strings.Contains(f.written[where], want) {
			f.t.Errorf("%s does not hold %q", where, want)
		}
	}
	for _, line := range f.found() {
		f.t.Error(line)
	}
	g.quit()
	f.wrote("log and dump on Consul", g.log.String())

	// The search can fail: each secret is found when it lies there, as it is, in the middle of base64, and packed.
	z, err := zstd.NewWriter(nil)
	if err != nil {
		f.t.Fatal(err)
	}
	planted := f.canaries[0].text
	for how, value := range map[string][]byte{
		"as it is": []byte(`{"a":"` + planted + `"}`),
		"base64":   []byte(`{"a":"` + base64.StdEncoding.EncodeToString([]byte("x"+planted+"y")) + `"}`),
		"packed":   z.EncodeAll([]byte(`{"a":"`+planted+`"}`), nil),
	} {
		kv(f.t, "PUT", c.Addr(0), "openclaw/planted", value)
		f2 := &flight{t: f.t, canaries: f.canaries[:1], written: map[string]string{where: snapshot(f.t, c.Addr(0))}}
		if len(f2.found()) == 0 {
			f.t.Errorf("a secret that was planted (%s) is not found in %s", how, where)
		}
		kv(f.t, "DELETE", c.Addr(0), "openclaw/planted", nil)
	}
}

func kv(t *testing.T, method, addr, key string, value []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, addr+"/v1/kv/"+key, bytes.NewReader(value))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s", method, key, resp.Status)
	}
}

// snapshot takes one of a Consul server, and returns all that is in it, with what is packed in it beside.
func snapshot(t *testing.T, addr string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/v1/snapshot", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	unzipped, err := gzip.NewReader(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	var all []byte
	var names []string
	for files := tar.NewReader(unzipped); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		all = append(append(all, b...), '\n')
	}
	if !slices.Contains(names, "state.bin") {
		t.Fatalf("the snapshot holds %q", names)
	}
	return string(unpacked(all))
}

var (
	base64Run = regexp.MustCompile(`[A-Za-z0-9+/_-]{24,}`)
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// unpacked is b, every frame of zstd in it, and what all of these hold as base64.
func unpacked(b []byte) []byte {
	all := slices.Clone(b)
	for rest := b; ; {
		i := bytes.Index(rest, zstdMagic)
		if i < 0 {
			break
		}
		if d, err := zstd.NewReader(bytes.NewReader(rest[i:]), zstd.WithDecoderConcurrency(1)); err == nil {
			var frame bytes.Buffer
			_, _ = io.Copy(&frame, io.LimitReader(d, 1<<20)) // what stands behind the frame is an error
			d.Close()
			all = append(append(all, '\n'), frame.Bytes()...)
		}
		rest = rest[i+len(zstdMagic):]
	}
	plain := strings.NewReplacer("-", "+", "_", "/")
	for _, run := range base64Run.FindAll(all, -1) {
		text := plain.Replace(string(run))
		for from := range 4 { // where it begins is not known: what stands before may look like base64 too
			s := text[from:]
			if got, err := base64.RawStdEncoding.DecodeString(s[:len(s)-len(s)%4]); err == nil {
				all = append(append(all, '\n'), got...)
			}
		}
	}
	return all
}
