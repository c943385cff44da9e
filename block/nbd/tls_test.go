package nbd

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificates makes a directory with an authority, a server's and a client's certificate, which are RSA's or of an elliptic curve.
func certificates(t *testing.T, useRSA bool) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var caKey crypto.Signer
	var ca *x509.Certificate
	for i, name := range []string{"ca", "server", "client"} {
		var key crypto.Signer
		var err error
		if useRSA {
			key, err = rsa.GenerateKey(crand.Reader, 2048)
		} else {
			key, err = ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		}
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
		switch name {
		case "ca":
			tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
			ca, caKey = tmpl, key
		case "server":
			tmpl.KeyUsage, tmpl.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			tmpl.DNSNames, tmpl.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		case "client":
			tmpl.KeyUsage, tmpl.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}
		der, err := x509.CreateCertificate(crand.Reader, tmpl, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		write(name+"-cert.pem", "CERTIFICATE", der)
		k, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+"-key.pem", "PRIVATE KEY", k)
	}
	return dir
}

func serveTCP(t *testing.T, s *Server) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, ln)
	return ln.Addr().(*net.TCPAddr).Port
}

func TestTLS(t *testing.T) {
	dir := certificates(t, false)
	conf, err := ServerTLS(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	client, err := ClientTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	stranger := client.Clone()
	stranger.Certificates = nil
	dev := newMem(2 << 20)
	for _, required := range []bool{false, true} {
		port := serveTCP(t, &Server{Exports: []Export{{Device: dev}}, TLS: conf, TLSRequired: required})
		uri := fmt.Sprintf("nbd://127.0.0.1:%d", port)
		c, err := Dial(t.Context(), strings.Replace(uri, "nbd", "nbds", 1), Options{TLS: client})
		if err != nil {
			t.Fatal(err)
		}
		b := bytes.Repeat([]byte("x"), 1<<20)
		got := make([]byte, len(b))
		if _, err := c.WriteContext(t.Context(), b, 5, FUA); err != nil {
			t.Error(err)
		}
		if _, err := c.ReadAt(got, 5); err != nil || !bytes.Equal(got, b) {
			t.Errorf("content differs over TLS, or %v", err)
		}
		c.Close()
		if _, ok := c.conn.(*tls.Conn); !ok {
			t.Errorf("the connection is a %T", c.conn)
		}
		for name, o := range map[string]Options{"without the right authority": {TLS: &tls.Config{}}, "without its own certificate": {TLS: stranger}} {
			if c, err := Dial(t.Context(), uri, o); err == nil {
				// With TLS 1.3 a client learns of its refusal when it reads.
				if _, err := c.ReadAt(b[:1], 0); err == nil {
					t.Errorf("a client %s was let in", name)
				}
				c.Close()
			}
		}
		if c, err := Dial(t.Context(), uri, Options{}); err == nil == required {
			t.Errorf("required %v: a client without TLS gives %v", required, err)
		} else if err == nil {
			c.Close()
		}
	}
	// A client that wants TLS does without nothing.
	port := serveTCP(t, &Server{Exports: []Export{{Device: dev}}})
	if _, err := Dial(t.Context(), fmt.Sprintf("nbds://localhost:%d", port), Options{TLS: client}); err == nil {
		t.Error("TLS was asked for, and the connection is in clear")
	}
}

func TestTLSTools(t *testing.T) {
	tool(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-nbd", "nbdkit")
	for _, useRSA := range []bool{false, true} {
		t.Run(fmt.Sprintf("rsa=%v", useRSA), func(t *testing.T) { testTLSTools(t, certificates(t, useRSA)) })
	}
}

func testTLSTools(t *testing.T, dir string) {
	file, content := imageFile(t, 2<<20)
	conf, err := ServerTLS(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(file, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	port := serveTCP(t, &Server{Exports: []Export{{Device: d}}, TLS: conf, TLSRequired: true})
	uri := fmt.Sprintf("nbds://localhost:%d/?tls-certificates=%s", port, dir)
	if out := run(t, "nbdinfo", uri); !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo: %s", out)
	}
	out := filepath.Join(t.TempDir(), "out")
	run(t, "nbdcopy", uri, out)
	sameFile(t, out, content)
	if msg, err := exec.Command("nbdinfo", fmt.Sprintf("nbd://localhost:%d", port)).CombinedOutput(); err == nil {
		t.Errorf("nbdinfo without TLS: %s", msg)
	}
	run(t, "qemu-img", "convert", "-O", "raw", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir,
		"--image-opts", fmt.Sprintf("driver=raw,file.driver=nbd,file.host=localhost,file.port=%d,file.tls-creds=t", port), out)
	sameFile(t, out, content)

	client, err := ClientTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(socketDir(t), "s")
	startTool(t, exec.Command("qemu-nbd", "-f", "raw", "-t", "-e", "4", "--object", "tls-creds-x509,id=t,endpoint=server,verify-peer=yes,dir="+dir,
		"--tls-creds", "t", "-k", sock, file), sock)
	kit := filepath.Join(socketDir(t), "s")
	startTool(t, exec.Command("nbdkit", "-f", "-U", kit, "--tls=require", "--tls-verify-peer", "--tls-certificates="+dir, "memory", "4M"), kit)
	for _, sock := range []string{sock, kit} {
		c, err := Dial(t.Context(), unixURI(sock, ""), Options{TLS: client})
		if err != nil {
			t.Fatal(err)
		}
		exercise(t, c)
		c.Close()
		if _, err := Dial(t.Context(), unixURI(sock, ""), Options{}); err == nil {
			t.Error("a server that requires TLS let us in without")
		}
	}
}
