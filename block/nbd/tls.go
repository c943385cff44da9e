package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ServerTLS loads a server's side of TLS from a directory, with the file names that QEMU, nbdkit and libnbd agree on:
// server-cert.pem and server-key.pem, and ca-cert.pem. With clients only those are let in whose certificates ca-cert.pem
// vouches for.
func ServerTLS(dir string, clients bool) (*tls.Config, error) {
	ca := ""
	if clients {
		ca = filepath.Join(dir, "ca-cert.pem")
	}
	return ServerTLSFiles(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"), ca)
}

// ServerTLSFiles is ServerTLS with files of any names. With the file of an authority only those are let in whose certificates
// it vouches for; "" lets in all.
func ServerTLSFiles(certFile, keyFile, ca string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("nbd: TLS: %w", err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if ca != "" {
		c.ClientAuth = tls.RequireAndVerifyClientCert
		c.ClientCAs, err = loadCA(ca)
		// By version 1.3, GnuTLS (QEMU, libnbd) gives no RSA certificate to a server that does not take RSA signatures of the
		// old kind (PKCS #1), which crypto/tls has not taken by that version since Go 1.25.
		c.MaxVersion = tls.VersionTLS12
	}
	return c, err
}

// ClientTLS loads a client's side of TLS from a directory: ca-cert.pem, and client-cert.pem with client-key.pem if they
// are there.
func ClientTLS(dir string) (*tls.Config, error) {
	ca, err := loadCA(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	c := &tls.Config{RootCAs: ca}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	switch {
	case err == nil:
		c.Certificates = []tls.Certificate{cert}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("nbd: TLS: %w", err)
	}
	return c, nil
}

func loadCA(name string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("nbd: TLS: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("nbd: TLS: no certificate in %s", name)
	}
	return pool, nil
}
