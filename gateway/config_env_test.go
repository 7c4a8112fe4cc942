package gateway

import (
	"slices"
	"strings"
	"testing"
)

func TestConfigInterpolate(t *testing.T) {
	env := configEnv("A=one", "B=two $A ${A} }{", "EMPTY=", "_X9=x", "TOKEN=a\"b\\c\n")
	for in, want := range map[string]string{
		"": "", "plain": "plain", "${A}": "one", "x${A}y${A}z": "xoneyonez", "${B}": "two $A ${A} }{", "${_X9}": "x", "${TOKEN}": "a\"b\\c\n",
		"$${A}": "${A}", "$$${A}": "$${A}", "$A": "$A", "pa$$word": "pa$$word", "5$": "5$", "$": "$", "$$": "$$", "{A}": "{A}",
		"${NO:-def}": "def", "${NO-def}": "def", "${NO:-}": "", "${NO-}": "", "${EMPTY:-def}": "def", "${EMPTY-def}": "", "${EMPTY:-}": "",
		"${A:-def}": "one", "${A:+alt}": "alt", "${NO:+alt}": "", "${NO:+}": "", "${NO:=def}": "def",
		"${NO:-http://h:80/a b?c=d&e='f'}": "http://h:80/a b?c=d&e='f'", "${NO:-ä \"q\"}": "ä \"q\"", "${NO:-:-}": ":-",
	} {
		got, _, err := cfgInterpolate(in, env)
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"a ${NO}": "environment variable NO is not set", "${EMPTY}": "environment variable EMPTY is empty (write ${EMPTY:-} if it may be)",
		"${": `"${" is not`, "${}": `"${}" is not`, "${A": `"${A" is not`, "${1}": `"${1}" is not`, "${_}": `"${_}" is not`, "${A b}": `"${A b}" is not`,
		"${A:?x}": `"${A:?x}" is not`, "${A:-$_}": `"${A:-$_}" is not`, "${A:-${B}}": `"${A:-${B}}" is not`,
	} {
		if got, _, err := cfgInterpolate(in, env); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: got %q, %v, want error %q", in, got, err, want)
		}
	}
	if _, vars, _ := cfgInterpolate("${A}${NO:-x}$${B}", env); !slices.Equal(vars, []string{"A", "NO"}) {
		t.Errorf("vars: %q", vars)
	}
}

func TestConfigEnvBlock(t *testing.T) {
	const doc = `{
		env: { NAME: "inline", vars: { NAME: "block", OTHER: "${HOME}/x", OVER: "file" } },
		mesh: { cluster: { id: "${NAME} ${OTHER} ${OVER}" } },
		gateway: { port: "${PORT:-1234}", auth: { token: "$${KEEP}" } },
		mesh2: "${OVER}",
	}`
	cfg, warnings, err := ParseConfig("c", []byte(doc), configEnv("OVER=process", "NAME="))
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].String(), "c:5:3: mesh2: unknown key (did you mean") {
		t.Fatalf("%v %v", warnings, err)
	}
	if cfg.Mesh.Cluster.ID != "block /home/node/x process" || cfg.Gateway.Port != 1234 || cfg.Gateway.Auth.Token != "${KEEP}" {
		t.Errorf("got %+v %+v", cfg.Mesh.Cluster, cfg.Gateway)
	}
	// Nothing outside of the block's reach: it is not looked up for itself.
	if _, _, err := ParseConfig("c", []byte(`{env: {A: "${B}", B: "b"}}`), configEnv()); err == nil || err.Error() != "c:1:11: env.A: environment variable B is not set" {
		t.Errorf("got %v", err)
	}
}

func TestConfigSecretReference(t *testing.T) {
	const doc = `{
		gateway: { auth: { token: { source: "env", provider: "default", id: "T" } } },
	}`
	cfg := mustParseConfig(t, doc, "T=abc")
	if cfg.Gateway.Auth.Token != "abc" || cfg.Origin("gateway.auth.token").String() != "c.json5:2:29 (${T})" {
		t.Errorf("got %q from %s", cfg.Gateway.Auth.Token, cfg.Origin("gateway.auth.token"))
	}
	if _, _, err := ParseConfig("c", []byte(doc), configEnv()); err == nil || err.Error() != "c:2:71: gateway.auth.token: environment variable T is not set" {
		t.Errorf("got %v", err)
	}
	if _, _, err := ParseConfig("c", []byte(`{gateway: {auth: {token: {id: 1}}}}`), configEnv()); err == nil || !strings.Contains(err.Error(), "expected string, found object") {
		t.Errorf("got %v", err)
	}
}
