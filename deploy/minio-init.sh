#!/bin/sh
# Makes the bucket, and the user who may use it and nothing else; may run any number of times.
set -eu

mc alias set objects http://minio:9000 "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" >/dev/null
mc mb --ignore-existing "objects/$S3_BUCKET"

# Adding a user who is there gives it this password.
mc admin user add objects "$S3_ACCESS_KEY_ID" "$S3_SECRET_ACCESS_KEY"
mc admin policy create objects backlot /deploy/minio-policy.json
# To attach what is attached is an error; then the policy is among the user's.
mc admin policy attach objects backlot --user "$S3_ACCESS_KEY_ID" || {
    case $(mc admin policy entities objects --user "$S3_ACCESS_KEY_ID") in
        *backlot*) ;;
        *) echo "the user $S3_ACCESS_KEY_ID could not be given its rights" >&2; exit 1 ;;
    esac
}
