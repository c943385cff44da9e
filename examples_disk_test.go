package vmscope_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vmscope/internal/guestlab"
)

// TestExampleSetuid runs the example on an image.
func TestExampleSetuid(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	dir := t.TempDir()
	tree, image, program := filepath.Join(dir, "tree"), filepath.Join(dir, "image"), filepath.Join(dir, "setuid")
	err := errors.Join(os.MkdirAll(filepath.Join(tree, "bin"), 0o755), os.WriteFile(filepath.Join(tree, "bin", "su\n"), nil, 0o755),
		os.WriteFile(filepath.Join(tree, "bin", "ls"), nil, 0o755), os.Chmod(filepath.Join(tree, "bin", "su\n"), 0o755|os.ModeSetuid))
	if err != nil {
		t.Fatal(err)
	}
	guestlab.MakeFS(t, image, 16<<20, "-t", "ext4", "-E", "root_owner=0:0", "-d", tree)
	if out, err := exec.Command("go", "build", "-o", program, "./examples/setuid").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(program, image).CombinedOutput()
	if want := `"/bin/su\n" of user `; err != nil || len(out) < len(want) || string(out[:len(want)]) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}
