package guestlab

import (
	"bufio"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// mirrors are the base addresses of Debian's archives.
type mirrors struct{ main, security string }

var defaultMirrors = mirrors{"http://deb.debian.org/debian", "http://deb.debian.org/debian-security"}

// hostMirrors takes the mirrors from the machine's own apt sources below etc ("/etc/apt"), so that a host behind a local
// mirror or a firewall fetches from where it is allowed to.
func hostMirrors(etc string) mirrors {
	files, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	sort.Strings(files)
	files = append([]string{filepath.Join(etc, "sources.list")}, files...)
	var uris []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // absent or unreadable: the others may do
		}
		switch filepath.Ext(f) {
		case ".list":
			uris = append(uris, listURIs(string(text))...)
		case ".sources":
			uris = append(uris, deb822URIs(string(text))...)
		}
	}
	return chooseMirrors(uris)
}

// chooseMirrors picks the archives out of all addresses that apt knows. Only the last path element tells Debian's own
// archive from other people's repositories.
func chooseMirrors(uris []string) mirrors {
	var m mirrors
	for _, u := range uris {
		u = strings.TrimRight(u, "/")
		switch u[strings.LastIndexByte(u, '/')+1:] {
		case "debian":
			if m.main == "" {
				m.main = u
			}
		case "debian-security":
			if m.security == "" {
				m.security = u
			}
		}
	}
	if m.main == "" {
		m.main = defaultMirrors.main
		if m.security == "" {
			m.security = defaultMirrors.security
		}
	}
	if m.security == "" {
		m.security = m.main + "-security"
	}
	return m
}

// listURIs reads the one-line format: deb [options] URI suite component...
func listURIs(text string) []string {
	var uris []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "deb" {
			continue
		}
		f = f[1:]
		if len(f) > 0 && strings.HasPrefix(f[0], "[") {
			for len(f) > 0 && !strings.HasSuffix(f[0], "]") {
				f = f[1:]
			}
			if len(f) > 0 {
				f = f[1:]
			}
		}
		if len(f) > 0 && usableURI(f[0]) {
			uris = append(uris, f[0])
		}
	}
	return uris
}

// deb822URIs reads the stanza format of *.sources files.
func deb822URIs(text string) []string {
	var uris, stanza []string
	deb, enabled, field := false, true, ""
	flush := func() {
		if deb && enabled {
			uris = append(uris, stanza...)
		}
		stanza, deb, enabled, field = nil, false, true, ""
	}
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "#"):
			continue
		case strings.TrimSpace(line) == "":
			flush()
			continue
		}
		value := line
		if line[0] != ' ' && line[0] != '\t' { // else the line continues the field above
			name, rest, _ := strings.Cut(line, ":")
			field, value = strings.ToLower(name), rest
		}
		for _, v := range strings.Fields(value) {
			switch field {
			case "types":
				deb = deb || v == "deb"
			case "enabled":
				enabled = !strings.EqualFold(v, "no")
			case "uris":
				if usableURI(v) {
					stanza = append(stanza, v)
				}
			}
		}
	}
	flush()
	return uris
}

// usableURI leaves out cdrom:, mirror+file: and the like, which a private apt directory cannot follow.
func usableURI(u string) bool {
	return strings.HasPrefix(u, "http://") || strings.HasPrefix(u, "https://") || strings.HasPrefix(u, "file:/")
}
