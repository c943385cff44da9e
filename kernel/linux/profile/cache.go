package profile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Cache is a directory of profiles that were made ahead, each named by its
// kernel's build id.
type Cache struct{ Dir string }

// UserCache is the cache of the user: vmscope/profiles in os.UserCacheDir.
func UserCache() (Cache, error) {
	dir, err := os.UserCacheDir()
	return Cache{filepath.Join(dir, "vmscope", "profiles")}, err
}

// ErrNoBuildID says that a file does not tell which kernel it is of, so that a
// cache cannot name it.
var ErrNoBuildID = errors.New("the file tells no build id")

// path is the file of a kernel. The id may be what a guest says: it is no path.
func (c Cache) path(id string) (string, error) {
	if id == "" {
		return "", ErrNoBuildID
	}
	for _, r := range id {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return "", fmt.Errorf("%q is no build id", id)
		}
	}
	if len(id) < 16 || len(id) > 128 {
		return "", fmt.Errorf("%q is no build id", id)
	}
	return filepath.Join(c.Dir, id), nil
}

// Load opens the profile of the kernel with a build id. None is an
// os.ErrNotExist.
func (c Cache) Load(ctx context.Context, id string) (*Profile, error) {
	path, err := c.path(id)
	if err != nil {
		return nil, err
	}
	p, err := Open(ctx, path)
	if err != nil {
		return nil, err
	}
	if p.BuildID != id {
		return nil, fmt.Errorf("%s: %w", path, errFormat("it is of build id %q", p.BuildID))
	}
	return p, nil
}

// Store keeps a profile in place of an older one and says where. An ErrNoBuildID
// says that it cannot be kept.
func (c Cache) Store(p *Profile) (path string, err error) {
	if path, err = c.path(p.BuildID); err != nil {
		return "", err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", err
	}
	return path, p.WriteFile(path)
}

// WriteFile is Write into a file, which is there whole or not at all.
func (p *Profile) WriteFile(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".profile-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // where it was not renamed
	err = errors.Join(f.Chmod(0o644), p.Write(f), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
