package guestlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// privateApt drives apt on a directory of its own. The system's package state and lists are neither read nor written;
// only its configuration (proxies and the like) counts.
type privateApt struct {
	dir  string
	conf string
}

// newPrivateApt prepares dir and downloads the package lists of the suites for machines of an architecture.
func newPrivateApt(ctx context.Context, dir string, m mirrors, arch string, suites []string) (*privateApt, error) {
	for _, d := range []string{"etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "state/lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var list strings.Builder
	for _, s := range suites {
		uri := m.main
		if strings.HasSuffix(s, "-security") {
			uri = m.security
		}
		fmt.Fprintf(&list, "deb [arch=%s target=Packages] %s %s main\n", arch, uri, s)
	}
	a := &privateApt{dir: dir, conf: filepath.Join(dir, "apt.conf")}
	files := map[string]string{
		filepath.Join(dir, "etc/sources.list"): list.String(),
		filepath.Join(dir, "state/status"):     "",
		a.conf:                                 aptConf(dir, arch),
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	_, err := a.run(ctx, "apt-get", "update")
	return a, err
}

// aptConf is read after the system's own configuration. Hooks are cleared because a host's hooks act on the host's
// caches; validity dates because an old suite is frozen, and its signature is still checked.
func aptConf(dir, arch string) string {
	return fmt.Sprintf(`#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear APT::Architectures;
APT::Architecture "%[2]s";
APT::Architectures { "%[2]s"; };
APT::Sandbox::User "root";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir "%[1]s";
Dir::State "%[1]s/state";
Dir::State::status "%[1]s/state/status";
Dir::Cache "%[1]s/cache";
Dir::Etc "%[1]s/etc";
Dir::Etc::trusted "/etc/apt/trusted.gpg";
Dir::Etc::trustedparts "/usr/share/keyrings";
`, dir, arch)
}

func (a *privateApt) run(ctx context.Context, tool string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, tool, append([]string{"-q", "-c", a.conf}, args...)...)
	cmd.Dir = filepath.Join(a.dir, "debs")
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("guestlab: %s %s: %w: %s", tool, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// A kernel's parts: up to 6.12 all is in linux-image-V; later that is a meta package over linux-binary-V (the kernel),
// linux-modules-V and linux-base-V (its configuration).
var kernelPart = regexp.MustCompile(`^linux-(image|binary|modules|base)-[0-9]`)

// kernelPackages follows the dependencies of a meta package to the packages that hold a kernel's files.
func (a *privateApt) kernelPackages(ctx context.Context, meta string) ([]string, error) {
	found, err := a.closure(ctx, kernelPart, meta)
	if err != nil {
		return nil, err
	}
	if len(found) == 1 {
		return nil, fmt.Errorf("guestlab: package %s leads to no kernel", meta)
	}
	return found[1:], nil
}

// closure returns the packages and all that they need whose names are as wanted, with what those need in turn.
func (a *privateApt) closure(ctx context.Context, wanted *regexp.Regexp, packages ...string) ([]string, error) {
	args := []string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}
	out, err := a.run(ctx, "apt-cache", append(args, packages...)...)
	if err != nil {
		return nil, err
	}
	needs := dependencies(string(out))
	seen := map[string]bool{}
	for _, p := range packages {
		seen[p] = true
	}
	found := slices.Clone(packages)
	for i := 0; i < len(found); i++ {
		for _, p := range needs[found[i]] {
			if !seen[p] && wanted.MatchString(p) {
				seen[p] = true
				found = append(found, p)
			}
		}
	}
	return found, nil
}

// dependencies reads what "apt-cache depends" prints: the name of a package at the begin of a line, and what it depends on,
// one a line, behind that; all alternatives count. What is but a name that others provide is left out.
func dependencies(text string) map[string][]string {
	needs := map[string][]string{}
	of := ""
	for line := range strings.Lines(text) {
		kind, name, on := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case on && strings.HasSuffix(kind, "Depends") && !strings.HasPrefix(name, "<"):
			name, _, _ = strings.Cut(name, ":") // drops an architecture
			needs[of] = append(needs[of], name)
		case line[0] != ' ' && line[0] != '|':
			of = strings.TrimSpace(line)
		}
	}
	return needs
}

// unpack downloads the packages and unpacks them all into dest.
func (a *privateApt) unpack(ctx context.Context, dest string, packages ...string) error {
	if _, err := a.run(ctx, "apt-get", append([]string{"download"}, packages...)...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, "debs", "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) < len(packages) {
		return errors.New("guestlab: apt-get download brought fewer packages than asked for")
	}
	for _, deb := range debs {
		cmd := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, dest)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("guestlab: unpack %s: %w: %s", filepath.Base(deb), err, bytes.TrimSpace(out))
		}
	}
	return nil
}
