package tap

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestServeWarns: a front end that breaks the protocol is told of, and how often it does is not.
func TestServeWarns(t *testing.T) {
	for _, inside := range []bool{true, false} {
		t.Run(fmt.Sprintf("inside=%v", inside), func(t *testing.T) {
			dir := t.TempDir()
			image, socket := filepath.Join(dir, "image"), filepath.Join(dir, "s")
			if err := os.WriteFile(image, make([]byte, 2*mebi), 0o600); err != nil {
				t.Fatal(err)
			}
			ln, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			warnings := make(chan error, 100)
			tap, err := Serve(t.Context(), ln, Service{Image: image, Protocol: VhostUser}, Options{InProcess: inside, Warn: func(err error) { warnings <- err }})
			if err != nil {
				t.Fatal(err)
			}
			defer tap.Close()
			began := time.Now()
			for range 20 {
				c, err := net.Dial("unix", socket)
				if err != nil {
					t.Fatal(err)
				}
				c.Write(make([]byte, 12)) // a header of no version
				c.Read(make([]byte, 1))   // until it is hung up on
				c.Close()
			}
			if err := <-warnings; !strings.Contains(err.Error(), "vhost-user") {
				t.Errorf("warned of %v", err)
			}
			if most := 1 + time.Since(began)/warnEvery; time.Duration(len(warnings)) > most {
				t.Errorf("warned %d times in %v", 1+len(warnings), time.Since(began))
			}
		})
	}
}
