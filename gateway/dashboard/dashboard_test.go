package dashboard

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, path string) *http.Response {
	t.Helper()
	rec := httptest.NewRecorder()
	Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return rec.Result()
}

func TestFiles(t *testing.T) {
	for path, kind := range map[string]string{
		"/": "text/html", "/dashboard/": "text/html", "/dashboard/app.js": "text/javascript", "/dashboard/style.css": "text/css",
	} {
		r := get(t, path)
		if r.StatusCode != http.StatusOK || !strings.HasPrefix(r.Header.Get("Content-Type"), kind) {
			t.Errorf("%s: %d %s", path, r.StatusCode, r.Header.Get("Content-Type"))
		}
		if csp := r.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
	}
	for _, path := range []string{"/dashboard/dashboard.go", "/dashboard/nothing", "/dashboard/../../etc/passwd", "/dashboard/index.html/.."} {
		if r := get(t, path); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
}

// What comes from the mesh is text, and nothing comes from elsewhere: the policy would stop
// it in a browser, this stops it here.
func TestNothingUnsafe(t *testing.T) {
	for name, forbidden := range map[string]string{
		"app.js":     `innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|\.style\b|localStorage|https?://`,
		"index.html": `<style|\sstyle=|\son[a-z]+=|https?://|<script>`,
		"style.css":  `@import|url\(|https?://`,
	} {
		b, err := files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if found := regexp.MustCompile(forbidden).FindAllString(string(b), -1); found != nil {
			t.Errorf("%s has %q", name, found)
		}
	}
}

// Every element that the script asks for is on the page, and every form field has a label.
func TestIDs(t *testing.T) {
	page, err := files.ReadFile("index.html")
	if err != nil {
		t.Fatal(err)
	}
	script, err := files.ReadFile("app.js")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\$\("([a-z-]+)"\)`).FindAllStringSubmatch(string(script), -1) {
		if !strings.Contains(string(page), `id="`+m[1]+`"`) {
			t.Errorf("there is no #%s", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`<(?:input|select|textarea) id="([a-z]+)"`).FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(string(page), `for="`+m[1]+`"`) {
			t.Errorf("#%s has no label", m[1])
		}
	}
}
