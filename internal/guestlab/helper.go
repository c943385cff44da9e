package guestlab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// The helper's sources travel inside the package, so that a test binary or a program can build it wherever it runs.
//
//go:embed rat/*.go wire/*.go
var helperSources embed.FS

// helperGoMod gives the helper a module of its own, with the import paths that its files use.
const helperGoMod = "module vmscope\n\ngo 1.26.0\n"

// buildHelper returns the path of the static helper program for a platform, building it unless the cache has it for these
// sources.
func buildHelper(ctx context.Context, p *platform) (string, error) {
	files, sum, err := helperFiles()
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(cache, "rat", "rat-"+p.arch+"-"+sum)
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if err := require("go"); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, "rat", "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	removeLeftovers(filepath.Join(cache, "rat", "build-*"))
	tmp, err := os.MkdirTemp(filepath.Join(cache, "rat"), "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for name, data := range files {
		name = filepath.Join(tmp, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			return "", err
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", "rat", "./internal/guestlab/rat")
	cmd.Dir = tmp
	// GOFLAGS and GOWORK of the caller speak of another module.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+p.goarch, "GOFLAGS=", "GOWORK=off", "GO111MODULE=on")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("guestlab: build the guest's helper: %w: %s", err, bytes.TrimSpace(out))
	}
	return bin, os.Rename(filepath.Join(tmp, "rat"), bin)
}

// helperFiles returns the helper's module and a hash over it.
func helperFiles() (files map[string][]byte, sum string, err error) {
	files = map[string][]byte{"go.mod": []byte(helperGoMod)}
	hash := sha256.New()
	hash.Write(files["go.mod"])
	err = fs.WalkDir(helperSources, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(name, "_test.go") {
			return err
		}
		data, err := helperSources.ReadFile(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(hash, "%s %d\n", name, len(data))
		hash.Write(data)
		files[path.Join("internal/guestlab", name)] = data
		return nil
	})
	return files, hex.EncodeToString(hash.Sum(nil)[:8]), err
}
